"""One training step as a pure function: gradients, non-finite guard, update, moving averages."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from pyratok_jax.checkpoints.partition import Arrays
from pyratok_jax.models.language.fused_attention import attention_kernel
from pyratok_jax.nn.partitioning import over_devices
from pyratok_jax.training.distributed.sharding import parts_of, split_of
from pyratok_jax.training.optimizer import is_statistic

Batch = Mapping[str, Array]
Metrics = dict[str, Array]
Seed = UInt32[Array, ""]
# Gradients of the trainable arrays, the loss, and its terms.
Gradients = tuple[Arrays, Array, Metrics]
# (trainable, frozen, batch, key, progress in [0, 1]) -> (loss, terms)
Loss = Callable[
    [Arrays, Arrays, Batch, PRNGKeyArray, Float[Array, ""]], tuple[Float[Array, ""], Metrics]
]


class TrainState(NamedTuple):
    """Everything that a step changes; with the loader's state, all that a checkpoint must hold.

    Attributes:
        step: steps done.
        params: trainable arrays by name, float32.
        opt_state: the optimizer's.
        ema: exponential moving averages of `params`; empty when not asked for.
        skipped: steps skipped so far because loss or gradient was not finite.
        skipped_in_a_row: consecutive skipped steps up to now.
    """

    step: Int[Array, ""]
    params: Arrays
    opt_state: optax.OptState
    ema: Arrays
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]


# (state, frozen arrays, batch, seed) -> (new state, metrics)
Step = Callable[[TrainState, Arrays, Batch, Seed], tuple[TrainState, Metrics]]


def initial_state(
    params: Arrays, optimizer: optax.GradientTransformation, ema_decay: float = 0.0
) -> TrainState:
    """The state before the first step."""

    # Each counter needs a buffer of its own, since the step donates them.
    def zero() -> Array:
        return jnp.zeros((), jnp.int32)

    ema = jax.tree.map(jnp.copy, params) if ema_decay else {}
    return TrainState(zero(), params, optimizer.init(params), ema, zero(), zero())


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    fused_attention: bool = True,
) -> Step:
    """The step; to be jitted with its state donated.

    All randomness is a function of (seed, step). The seed is an argument, so that trainings that
    differ in nothing else share one compiled program. A step whose loss or gradient is not finite
    leaves parameters, optimizer state and averages unchanged and is counted.

    Args:
        loss: see `Loss`.
        optimizer: of the trainable arrays.
        steps: length of the training, for the progress that schedules see.
        accumulate: microbatches that a batch is cut into at most; their gradients are averaged.
            Statistics over the batch (entropies) are then those of each microbatch. A batch of few
            clips is cut into fewer, so that every device has a clip.
        ema_decay: of the exponential moving averages; 0 keeps none.
        fused_attention: long attention by the kernel of `models.language.fused_attention` on TPUs.
    """

    def gradients(
        params: Arrays, frozen: Arrays, batch: Batch, key: PRNGKeyArray, progress: Array
    ) -> Gradients:
        with over_devices(split_of(_rows(batch))), attention_kernel(fused_attention):
            (value, terms), grads = jax.value_and_grad(loss, has_aux=True)(
                params, frozen, batch, key, progress
            )
        return grads, value, terms

    def step(
        state: TrainState, frozen: Arrays, batch: Batch, seed: Seed
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        progress = state.step / max(steps, 1)
        parts = parts_of(_rows(batch), accumulate)
        if parts == 1:
            grads, value, terms = gradients(state.params, frozen, batch, key, progress)
        else:
            grads, value, terms = _accumulated(
                lambda part, key: gradients(state.params, frozen, part, key, progress),
                batch,
                key,
                parts,
            )
        norm = optax.global_norm({k: g for k, g in grads.items() if not is_statistic(k)})
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Running statistics are averages already, from the first batch on.
        decay = {k: 0.0 if is_statistic(k) else ema_decay for k in state.ema}
        ema = {k: decay[k] * v + (1 - decay[k]) * params[k] for k, v in state.ema.items()}
        params, opt_state, ema = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        bad = 1 - good.astype(jnp.int32)
        in_a_row = (state.skipped_in_a_row + 1) * bad
        metrics = {"loss": value, "grad_norm": norm, "skipped_steps": state.skipped + bad} | terms
        new = TrainState(state.step + 1, params, opt_state, ema, state.skipped + bad, in_a_row)
        return new, metrics

    return step


def _rows(batch: Batch) -> int:
    return next(iter(batch.values())).shape[0]


def _accumulated(
    gradients: Callable[[Batch, PRNGKeyArray], Gradients],
    batch: Batch,
    key: PRNGKeyArray,
    parts: int,
) -> Gradients:
    """Means over the microbatches of a batch, by a scan."""
    # Rows are dealt out in turn, so that each microbatch is sharded over all devices.
    pieces = {k: v.reshape(-1, parts, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}

    def body(total: Gradients, item: tuple[Batch, Array]) -> tuple[Gradients, None]:
        part, index = item
        result = gradients(part, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, result), None

    first = {k: v[0] for k, v in pieces.items()}
    shapes = jax.eval_shape(gradients, first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, (pieces, jnp.arange(parts)))
    return jax.tree.map(lambda x: x / parts, total)
