"""Data-dependent initialisation: the metric of the decoder, and the joint fit of all levels.

A frozen decoder is sensitive to some channels of its latent and hardly to others. Codes should
spend their bits on what changes the video, so errors of the latent are measured by the pull-back
(Gauss-Newton) metric M = mean over positions of J'J, with J the Jacobian of the video by the latent
at a position, estimated from Rademacher probes.

`Quantizer.fit` fits each level's linear maps in turn. Then the whole path from the encoder's
features to the synthesised latent (lateral connections, analysis, MLPs, synthesis with its
smoothing) follows the gradient of the latent's error. Encoder, decoder and language model are not
run: a step costs a small part of a training step. Text attention is left as it is; a fresh one
ignores the text.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.nn.lowering import conv_lowering, current_lowering

_POSITIONS = (2, 3, 8, 8)  # clips, frames, rows and columns of the latents that are used, at most
_FLOOR = 0.02  # of the mean eigenvalue, added for directions to which the decoder is blind


def metric_of(
    tokenizer: PyraTok, latents: Float[np.ndarray, "b t h w z"], seed: int
) -> Float[np.ndarray, "z z"]:
    """The metric of a tokenizer's decoder at the first positions of some normalised latents."""
    graph, state = nnx.split(tokenizer)
    # The custom VJPs of the lowering for TPUs have no forward-mode derivative.
    lowering = "conv3d" if current_lowering() == "tpu" else current_lowering()

    def decode(latents: Array) -> Array:
        with conv_lowering(lowering):
            return nnx.merge(graph, state).decode(latents)

    clips, frames, rows, columns = _POSITIONS
    few = jnp.asarray(latents[:clips, :frames, :rows, :columns])
    return decoder_metric(decode, few, jax.random.key(seed))


def decoder_metric(
    decode: Callable[[Float[Array, "b t h w z"]], Array],
    latents: Float[Array, "b t h w z"],
    key: PRNGKeyArray,
) -> Float[np.ndarray, "z z"]:
    """Estimate M: e'Me is the squared change of the video by an error e at a latent position.

    One Jacobian-vector product per channel is enough. The probe of channel c is a random sign at
    every position in that channel, the same signs for all channels; with v_c the product, the
    inner product of v_c and v_d has the expectation sum over positions of (J'J)_cd, since cross
    terms of different positions have expectation zero.

    Args:
        decode: normalised latents to videos.
        latents: of real clips; a few are enough.
        key: of the signs.

    Returns:
        symmetric positive definite, its trace the number of channels, its smallest eigenvalue at
        least about 0.02.
    """
    channels = latents.shape[-1]
    signs = jax.random.rademacher(key, latents.shape[:-1], latents.dtype)

    @jax.jit
    def derivatives(latents: Array, signs: Array) -> Array:
        def by(channel: Array) -> Array:
            disturbed = signs[..., None] * jax.nn.one_hot(channel, channels, dtype=signs.dtype)
            return jax.jvp(decode, (latents,), (disturbed,))[1].reshape(-1)

        return jax.lax.map(by, jnp.arange(channels))

    found = np.asarray(derivatives(latents, signs), np.float64)
    metric = found @ found.T
    metric *= channels / np.trace(metric)
    return (metric + _FLOOR * np.eye(channels)) / (1.0 + _FLOOR)


_TEXT = ("attention", "text_prior")
_SETTLED = 2.0  # Beyond this logit a sign is settled; what grows further is drawn back.
_PULL = 1e-3


@dataclasses.dataclass(frozen=True)
class CalibrationBatch:
    """What the frozen encoder gives for one batch: all that the levels read.

    Attributes:
        latent: normalised.
        stages: the four stage features.
    """

    latent: Float[np.ndarray, "b t h w z"]
    stages: tuple[np.ndarray, ...]


def refine(
    model: PyraTok,
    encoded: Sequence[CalibrationBatch],
    root: Float[np.ndarray, "z z"],
    *,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    progress: Callable[[Iterator[int]], Iterator[int]] = iter,
    kept: int = 0,
) -> float:
    """Descend |(z_hat - z) R|^2 by Adam, in place; each step sees one of the batches.

    Args:
        model: a tokenizer whose levels, or quantiser of the latent, have been fitted.
        encoded: batches of equal shapes.
        root: R, see `models.metric.square_root`.
        steps: of the descent; 0 changes nothing.
        learning_rate: after a warm-up of 20 steps; falls to 2 % along a cosine.
        seed: of the order of batches.
        progress: wraps the iterator over steps, to show it.
        kept: first levels whose codes stay as they are.

    Returns:
        Mean error over the last tenth of the steps; nan where there are none.
    """
    graph, trained, fixed = nnx.split(model, _refined(kept), ...)  # type: ignore[misc]
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(20, steps // 2), max(steps, 1), 0.02 * learning_rate
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    weights = jnp.asarray(root, jnp.float32)

    def error(trained: nnx.State, fixed: nnx.State, batch: CalibrationBatch) -> tuple[Array, Array]:
        merged = nnx.merge(graph, trained, fixed)
        levels, latent = merged.quantize(batch.stages, batch.latent, None)
        missed = jnp.mean(jnp.square((latent - batch.latent) @ weights))
        beyond = [jnp.maximum(jnp.abs(level.z) - _SETTLED, 0.0) for level in levels]
        return missed + _PULL * sum(jnp.mean(jnp.square(x)) for x in beyond), missed

    @jax.jit
    def step(
        trained: nnx.State, state: optax.OptState, fixed: nnx.State, batch: CalibrationBatch
    ) -> tuple:
        (_, missed), slope = jax.value_and_grad(error, has_aux=True)(trained, fixed, batch)
        updates, state = optimizer.update(slope, state, trained)
        return optax.apply_updates(trained, updates), state, missed

    state, errors = optimizer.init(trained), []
    order = np.random.default_rng(seed)
    for _ in progress(iter(range(steps))):
        batch = encoded[int(order.integers(len(encoded)))]
        trained, state, missed = step(trained, state, fixed, batch)
        errors.append(missed)
    nnx.update(model, trained)
    return float(np.mean(errors[-max(steps // 10, 1) :])) if errors else float("nan")


def _refined(kept: int) -> Callable[[tuple, object], bool]:
    def chosen(path: tuple, variable: object) -> bool:
        names = [str(key) for key in path]
        return (
            isinstance(variable, nnx.Param)
            and names[0] == "quantizer"
            and not any(name in _TEXT for name in names)
            and not (names[1] == "blocks" and int(names[2]) < kept)
        )

    return chosen


jax.tree_util.register_dataclass(CalibrationBatch, data_fields=["latent", "stages"], meta_fields=[])
