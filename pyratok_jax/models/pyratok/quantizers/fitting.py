"""Data-dependent start of the latent quantisers: projections and codebooks fitted to real latents.

The pyramid's levels start from fitted linear codes (`training.calibration`); a comparison is fair
only when the other quantisers start from data too. Principal components give the projections,
k-means gives the codebooks, least squares gives the way back from lookup-free codes.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pyratok_jax.models.pyratok.latent_metric import each_position, energy
from pyratok_jax.models.pyratok.quantizers.build import LatentQuantizer
from pyratok_jax.models.pyratok.quantizers.continuous import ContinuousLatent
from pyratok_jax.models.pyratok.quantizers.lookup_free import LookupFreeLatent
from pyratok_jax.models.pyratok.quantizers.projection import LatentProjection
from pyratok_jax.models.pyratok.quantizers.vector import VectorLatent
from pyratok_jax.nn.grids import space_to_depth

MAX_SAMPLES = 16384


def fit_quantizer(
    quantizer: LatentQuantizer,
    latents: Sequence[Float[Array | np.ndarray, "b t h w z"]],
    *,
    root: Float[np.ndarray, "z z"] | None = None,
    seed: int = 0,
    rounds: int = 10,
) -> float:
    """Fit a fresh quantiser to latents, in place.

    Args:
        quantizer: with fresh weights.
        latents: normalised latents of real clips.
        root: R, where an error e of a latent position counts |e R|^2 (`models.metric`); None counts
            all channels alike. Lookup-free stages, whose steps 2^-i suit even channels, are fitted
            without it.
        seed: of rotations, samples and first centres.
        rounds: of k-means.

    Returns:
        share of the latents' energy, by the root's metric, that is left over.
    """
    if isinstance(quantizer, ContinuousLatent):
        return 0.0
    rng = np.random.default_rng(seed)
    root = np.eye(latents[0].shape[-1]) if root is None else root
    if quantizer.projection is not None:
        patches = [space_to_depth(jnp.asarray(x), quantizer.projection.patch) for x in latents]
        vectors = np.concatenate([np.asarray(p).reshape(-1, p.shape[-1]) for p in patches])
        if len(vectors) > MAX_SAMPLES:
            vectors = vectors[rng.choice(len(vectors), MAX_SAMPLES, replace=False)]
        if isinstance(quantizer, VectorLatent):
            _fit_vectors(quantizer, vectors, root, rng, rounds)
        else:
            _fit_signs(quantizer, vectors, rng)
    missed = [np.asarray(quantizer(jnp.asarray(x), None)[1]) - x for x in latents]
    return energy(missed, root) / energy(latents, root)


def _principal(x: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and (d, width) principal directions, zeros where there are no more."""
    mean = x.mean(axis=0)
    directions = np.linalg.eigh(np.cov(x - mean, rowvar=False).reshape(x.shape[1], -1))[1]
    basis = np.zeros((x.shape[1], width))
    kept = min(width, x.shape[1])
    basis[:, :kept] = directions[:, ::-1][:, :kept]
    return mean, basis


def _set_projection(
    projection: LatentProjection, enter: np.ndarray, mean: np.ndarray, leave: np.ndarray
) -> None:
    for layer, kernel, bias in (
        (projection.enter, enter, -mean @ enter),
        (projection.leave, leave, mean),
    ):
        layer.kernel[...] = jnp.asarray(kernel, jnp.float32)
        if layer.bias is not None:
            layer.bias[...] = jnp.asarray(bias, jnp.float32)


def _fit_vectors(
    quantizer: VectorLatent,
    patches: np.ndarray,
    root: np.ndarray,
    rng: np.random.Generator,
    rounds: int,
) -> None:
    """Principal components, then k-means on each group, or on what earlier levels left over."""
    assert quantizer.projection is not None
    width = quantizer.projection.enter.kernel.shape[-1]
    x = each_position(patches, root)
    mean, basis = _principal(x, width)
    enter = each_position(basis.T, root).T
    leave = each_position(basis.T, np.linalg.inv(root))
    _set_projection(quantizer.projection, enter, patches.mean(axis=0), leave)
    left = (x - mean) @ basis
    parts = np.split(left, quantizer.depth, axis=-1) if quantizer.grouped else []
    for level, book in enumerate(quantizer.codebooks):
        points = parts[level] if quantizer.grouped else left
        centres = _k_means(points.astype(np.float32), book.shape[0], rng, rounds)
        book[...] = jnp.asarray(centres)
        if not quantizer.grouped:
            left = left - centres[_closest(points, centres)]


def _closest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.argmin(np.sum(centres**2, axis=1) - 2.0 * points @ centres.T, axis=1)


def _k_means(points: np.ndarray, count: int, rng: np.random.Generator, rounds: int) -> np.ndarray:
    """Lloyd's rounds from random points; a centre that wins none moves to a random point."""
    more = count > len(points)
    centres = points[rng.choice(len(points), count, replace=more)]
    if more:
        centres = centres + 1e-3 * points.std() * rng.normal(size=centres.shape)
    for _ in range(rounds):
        owner = _closest(points, centres)
        sizes = np.bincount(owner, minlength=count)
        sums = np.zeros_like(centres)
        np.add.at(sums, owner, points)
        fresh = points[rng.choice(len(points), count)]
        centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], fresh)
    return centres.astype(np.float32)


def _fit_signs(quantizer: LookupFreeLatent, x: np.ndarray, rng: np.random.Generator) -> None:
    """Principal components under a random rotation, so that bits carry like shares."""
    assert quantizer.projection is not None
    bits = quantizer.projection.enter.kernel.shape[-1]
    mean, basis = _principal(x, bits)
    enter = basis @ np.linalg.qr(rng.normal(size=(bits, bits)))[0]
    enter = enter / (np.std((x - mean) @ enter, axis=0) + 1e-6)
    features = jnp.asarray((x - mean) @ enter, jnp.float32)
    total, left = np.zeros(features.shape), features
    for stage in range(quantizer.depth):
        signs = jnp.where(left >= 0, 1.0, -1.0) * 2.0**-stage
        total, left = total + np.asarray(signs), left - signs
    gram = total.T @ total + 1e-3 * len(total) * np.eye(bits)
    _set_projection(quantizer.projection, enter, mean, np.linalg.solve(gram, total.T @ (x - mean)))
