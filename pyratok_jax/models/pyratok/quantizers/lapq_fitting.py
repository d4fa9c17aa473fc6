"""Data-dependent start of LaPQ's levels: linear codes fitted to real latents.

From random weights the straight-through gradient needs thousands of steps to find a code. Here each
level's linear paths are fitted in turn, coarse to fine, to the latents of a few real clips: the
analysis starts at the principal directions of the earlier levels' residual (under a random
rotation, so that every bit carries an equal share), the synthesis is the least-squares solution for
the resulting signs, and both are then refined together. It changes the first step, not the model.
`training.init.refinement` continues from here with all levels together.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.pyratok.latent_metric import each_position, energy
from pyratok_jax.models.pyratok.lfq import hard_sign, straight_through
from pyratok_jax.models.pyratok.synthesis import Analysis, Synthesis
from pyratok_jax.nn.grids import space_to_depth

MAX_SAMPLES = 16384
_FLOOR = 0.05  # of the latents' root mean square


def fit_levels(
    levels: Sequence[tuple[Analysis, Synthesis]],
    latents: Sequence[Float[Array | np.ndarray, "b t h w z"]],
    *,
    root: Float[np.ndarray, "z z"] | None = None,
    seed: int = 0,
    steps: int = 300,
) -> list[float]:
    """Fit the analysis and synthesis of every level to `latents`, in place.

    Args:
        levels: fresh maps, coarse to fine.
        latents, root, seed: see `Quantizer.fit`.
        steps: refinement steps per map; 0 keeps the closed form.

    Returns:
        share of the latents' energy, by the metric, that is left after each level.
    """
    rng = np.random.default_rng(seed)
    channels = latents[0].shape[-1]
    root = np.eye(channels) if root is None else root
    missing = [np.asarray(x, np.float32) for x in latents]
    total = energy(missing, root)
    # A remainder far below the latents themselves is not blown up to logits of order one.
    floor = _FLOOR * total**0.5
    left = []
    for analysis, synthesis in levels:
        patches = [np.asarray(space_to_depth(jnp.asarray(x), analysis.patch)) for x in missing]
        parts = (("first", slice(0, 1)), ("rest", slice(1, None)))
        for name, frames in parts:
            vectors = _sample([x[:, frames] for x in patches], rng)
            if len(vectors):
                maps = getattr(analysis, name), getattr(synthesis, name)
                _fit_pair(*maps, vectors, root, rng, steps, floor)
        missing = [_remainder(analysis, synthesis, x) for x in missing]
        left.append(energy(missing, root) / total)
    return left


def _sample(patches: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """At most `MAX_SAMPLES` patch vectors (n, d) of all clips."""
    vectors = np.concatenate([x.reshape(-1, x.shape[-1]) for x in patches])
    if len(vectors) > MAX_SAMPLES:
        vectors = vectors[rng.choice(len(vectors), MAX_SAMPLES, replace=False)]
    return vectors


def _remainder(analysis: Analysis, synthesis: Synthesis, missing: np.ndarray) -> np.ndarray:
    codes = hard_sign(analysis(jnp.asarray(missing)))
    return missing - np.asarray(synthesis.linear(codes))


def _fit_pair(
    analysis: nnx.Linear,
    synthesis: nnx.Linear,
    patches: np.ndarray,
    root: np.ndarray,
    rng: np.random.Generator,
    steps: int,
    floor: float,
) -> None:
    """Fit signs(x W + a) and its linear answer to `patches` (n, d); write both layers.

    The fit is made where the metric is the usual one, at x R for every position of a patch.
    """
    bits = analysis.kernel.shape[-1]
    x = each_position(patches, root)
    mean = x.mean(axis=0)
    weights = _principal_rotation(x - mean, bits, rng, floor)
    bias = -mean @ weights
    codes = np.where(x @ weights + bias >= 0, 1.0, -1.0)
    answer, offset = _least_squares(codes, x)
    start = tuple(jnp.asarray(v, jnp.float32) for v in (weights, bias, answer, offset))
    weights, bias, answer, offset = _refine(start, jnp.asarray(x), steps, rng.integers(2**31))
    codes = np.where(x @ np.asarray(weights) + np.asarray(bias) >= 0, 1.0, -1.0)
    answer, offset = _least_squares(codes, x)
    back = np.linalg.inv(root)
    analysis.kernel[...] = jnp.asarray(each_position(np.asarray(weights).T, root).T, jnp.float32)
    _set_bias(analysis, bias)
    synthesis.kernel[...] = jnp.asarray(each_position(answer, back), jnp.float32)
    _set_bias(synthesis, jnp.asarray(each_position(offset[None], back)[0], jnp.float32))


def _set_bias(layer: nnx.Linear, value: Array) -> None:
    assert layer.bias is not None
    layer.bias[...] = value


def _principal_rotation(
    x: np.ndarray, bits: int, rng: np.random.Generator, floor: float
) -> np.ndarray:
    """(d, bits): principal directions under a random rotation, scaled to unit-variance logits.

    Directions whose deviation is far below `floor` get smaller logits.
    """
    values, vectors = np.linalg.eigh(x.T @ x / max(len(x), 1))
    kept = min(bits, x.shape[1])
    basis = vectors[:, ::-1][:, :kept]
    rotation = np.linalg.qr(rng.normal(size=(max(bits, kept), kept)))[0].T
    weights = basis @ rotation[:kept, :bits]
    scale = np.sqrt(np.mean(np.square(x @ weights), axis=0) + floor**2) + 1e-6
    return weights / scale


def _least_squares(codes: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge solution of codes @ answer + offset = x."""
    design = np.concatenate([codes, np.ones((len(codes), 1))], axis=1)
    ridge = 1e-3 * len(codes) * np.eye(design.shape[1])
    ridge[-1, -1] = 0.0  # The offset is not shrunk.
    gram = design.T @ design + ridge
    solution = np.linalg.solve(gram, design.T @ x)
    return solution[:-1], solution[-1]


@functools.partial(jax.jit, static_argnames="steps")
def _refine(
    start: tuple[Array, ...], x: Float[Array, "n d"], steps: int, seed: int | Array
) -> tuple[Array, ...]:
    """Descend the squared error of the sign code with a straight-through gradient."""
    schedule = optax.cosine_decay_schedule(1e-2, max(steps, 1))
    optimizer = optax.adam(schedule)

    def error(maps: tuple[Array, ...], rows: Array) -> Array:
        weights, bias, answer, offset = maps
        z = rows @ weights + bias
        # Beyond |z| = 2 a sign is settled: no gradient, or logits would grow without end.
        codes = straight_through(hard_sign(z), jnp.clip(z, -2.0, 2.0))
        return jnp.mean(jnp.square(codes @ answer + offset - rows))

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        maps, state = carry
        rows = x[jax.random.randint(key, (min(1024, len(x)),), 0, len(x))]
        updates, state = optimizer.update(jax.grad(error)(maps, rows), state)
        return (optax.apply_updates(maps, updates), state), None

    keys = jax.random.split(jax.random.key(seed), steps)
    (maps, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    return maps
