"""Data-dependent start of LaPQ's levels: linear codes fitted to real latents.

From random weights the straight-through gradient needs thousands of steps to find a code. Here each
level's linear paths are fitted in turn, coarse to fine, to the latents of a few real clips: the
analysis starts at the principal directions of the earlier levels' residual (under a random
rotation, so that every bit carries an equal share), the synthesis is the least-squares solution for
the resulting signs, and both are then refined together. It changes the first step, not the model.
`training.init.calibration.refine` continues from here with all levels together.

Where the residual does not enter a level's logits directly, the same linear code is a teacher: the
level's head is the least-squares prediction of the teacher's logits from the level's own features,
and the synthesis answers the signs of that prediction.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.pyratok.lfq import hard_sign, straight_through
from pyratok_jax.models.pyratok.quantizers.final_latent import each_position, energy
from pyratok_jax.models.pyratok.synthesis import Analysis, Synthesis
from pyratok_jax.nn.grids import space_to_depth

MAX_SAMPLES = 16384
_FLOOR = 0.05  # of the latents' root mean square


class LevelMaps(NamedTuple):
    """What is fitted of one level.

    Attributes:
        analysis: residual to logits: the level's own, or a teacher's that is not kept.
        synthesis: codes to the latent.
        head: features to logits; None where `analysis` alone gives the logits.
        features: (number of the clip, residual, previous codes) -> what `head` reads, float32.
    """

    analysis: Analysis
    synthesis: Synthesis
    head: nnx.Linear | None = None
    features: Callable[[int, Array, Array | None], Float[Array, "b t h w d"]] | None = None


class KeptLevel(NamedTuple):
    """A level that stays as it is; those after it are fitted to what it leaves.

    Attributes:
        codes: (number of the clip, residual, previous codes) -> its codes.
        synthesis: codes to the latent, smoothing included.
    """

    codes: Callable[[int, Array, Array | None], Float[Array, "b t h w bits"]]
    synthesis: Callable[[Array], Array]


def fit_levels(
    levels: Sequence[LevelMaps | KeptLevel],
    latents: Sequence[Float[Array | np.ndarray, "b t h w z"]],
    *,
    root: Float[np.ndarray, "z z"] | None = None,
    seed: int = 0,
    steps: int = 300,
) -> list[float]:
    """Fit the maps of every level to `latents`, in place.

    Args:
        levels: fresh maps, coarse to fine; the first ones may be kept as they are.
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
    previous: list[Array | None] = [None] * len(missing)
    for level in levels:
        if isinstance(level, KeptLevel):
            found = [
                level.codes(n, jnp.asarray(x), q)
                for n, (x, q) in enumerate(zip(missing, previous, strict=True))
            ]
            missing = [
                x - np.asarray(level.synthesis(q)) for x, q in zip(missing, found, strict=True)
            ]
            previous = list(found)
            left.append(energy(missing, root) / total)
            continue
        analysis, synthesis = level.analysis, level.synthesis
        patches = [np.asarray(space_to_depth(jnp.asarray(x), analysis.patch)) for x in missing]
        parts = (("first", slice(0, 1)), ("rest", slice(1, None)))
        for name, frames in parts:
            vectors = _sample([x[:, frames] for x in patches], rng)
            if len(vectors):
                maps = getattr(analysis, name), getattr(synthesis, name)
                _fit_pair(*maps, vectors, root, rng, steps, floor)
        if level.head is None:
            codes = [hard_sign(analysis(jnp.asarray(x))) for x in missing]
        else:
            codes = _fit_head(level, missing, previous, root, rng)
        missing = [x - np.asarray(synthesis.linear(q)) for x, q in zip(missing, codes, strict=True)]
        previous = list(codes)
        left.append(energy(missing, root) / total)
    return left


def _sample(patches: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """At most `MAX_SAMPLES` patch vectors (n, d) of all clips."""
    vectors = _rows(patches)
    return vectors[_chosen(len(vectors), rng)]


def _rows(arrays: Sequence[Array | np.ndarray]) -> np.ndarray:
    """The vectors (n, d) of arrays of any leading shapes."""
    return np.concatenate([np.asarray(x).reshape(-1, x.shape[-1]) for x in arrays])


def _chosen(count: int, rng: np.random.Generator) -> np.ndarray | slice:
    """Indices of the vectors that a fit uses: a sample of at most `MAX_SAMPLES`."""
    return rng.choice(count, MAX_SAMPLES, replace=False) if count > MAX_SAMPLES else slice(None)


def _fit_head(
    level: LevelMaps,
    missing: list[np.ndarray],
    previous: list[Array | None],
    root: np.ndarray,
    rng: np.random.Generator,
) -> list[Array]:
    """Fit head and synthesis to the teacher `level.analysis`; the codes of every clip."""
    analysis, synthesis, head = level.analysis, level.synthesis, level.head
    assert head is not None and level.features is not None
    given = [jnp.asarray(x) for x in missing]
    features = [
        level.features(clip, x, before)
        for clip, (x, before) in enumerate(zip(given, previous, strict=True))
    ]
    inputs, logits = _rows(features), _rows([analysis(x) for x in given])
    chosen = _chosen(len(inputs), rng)
    kernel, bias = _least_squares(inputs[chosen].astype(np.float64), logits[chosen])
    # What cannot be predicted is shrunk towards 0: logits of order one again.
    spread = np.std(inputs[chosen] @ kernel, axis=0) + 1e-6
    head.kernel[...] = jnp.asarray(kernel / spread, jnp.float32)
    _set_bias(head, jnp.asarray(bias / spread, jnp.float32))
    codes = [hard_sign(head(x)) for x in features]
    patches = [np.asarray(space_to_depth(x, analysis.patch)) for x in given]
    parts = (
        (synthesis.first, [q[:, :1] for q in codes], [x[:, :1] for x in patches]),
        (synthesis.rest, [synthesis.grouped(q[:, 1:]) for q in codes], [x[:, 1:] for x in patches]),
    )
    for layer, signs, wanted in parts:
        design, x = _rows(signs), each_position(_rows(wanted), root)
        if len(design):
            chosen = _chosen(len(design), rng)
            answer, offset = _least_squares(design[chosen], x[chosen])
            _set_synthesis(layer, answer, offset, root)
    return codes


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
    analysis.kernel[...] = jnp.asarray(each_position(np.asarray(weights).T, root).T, jnp.float32)
    _set_bias(analysis, bias)
    _set_synthesis(synthesis, answer, offset, root)


def _set_synthesis(
    synthesis: nnx.Linear, answer: np.ndarray, offset: np.ndarray, root: np.ndarray
) -> None:
    """Write a least-squares answer (bits, d), found at x R, as a map to x."""
    back = np.linalg.inv(root)
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
