"""Shared by the quantisers of the final latent: a data-dependent start.

The pyramid's levels start from fitted linear codes (`lapq_fitting`); a comparison is fair only when
the other quantisers start from data too. Principal components give the projections, k-means the
codebooks, least squares the way back from lookup-free codes.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pyratok_jax.models.pyratok.latent_metric import energy
from pyratok_jax.models.pyratok.quantizers.base import Latents, Quantizer
from pyratok_jax.models.pyratok.quantizers.projection import LatentProjection
from pyratok_jax.nn.grids import space_to_depth

MAX_SAMPLES = 16384


def sample_patches(latents: Latents, patch: int, rng: np.random.Generator) -> np.ndarray:
    """At most `MAX_SAMPLES` vectors (n, patch^2 z) of patches of all clips."""
    patches = [space_to_depth(jnp.asarray(x), patch) for x in latents]
    vectors = np.concatenate([np.asarray(p).reshape(-1, p.shape[-1]) for p in patches])
    if len(vectors) > MAX_SAMPLES:
        vectors = vectors[rng.choice(len(vectors), MAX_SAMPLES, replace=False)]
    return vectors


def share_left(
    quantizer: Quantizer, latents: Latents, root: Float[np.ndarray, "z z"]
) -> list[float]:
    """Share of the latents' energy that a quantiser of the latent alone leaves over."""
    missed = [np.asarray(quantizer((), jnp.asarray(x), None)[1]) - x for x in latents]
    return [energy(missed, root) / energy(latents, root)]


def principal(x: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and (d, width) principal directions, zeros where there are no more."""
    mean = x.mean(axis=0)
    directions = np.linalg.eigh(np.cov(x - mean, rowvar=False).reshape(x.shape[1], -1))[1]
    basis = np.zeros((x.shape[1], width))
    kept = min(width, x.shape[1])
    basis[:, :kept] = directions[:, ::-1][:, :kept]
    return mean, basis


def set_projection(
    projection: LatentProjection, enter: np.ndarray, mean: np.ndarray, leave: np.ndarray
) -> None:
    """Write both linear maps: features (x - mean) @ enter, and back f @ leave + mean."""
    for layer, kernel, bias in (
        (projection.enter, enter, -mean @ enter),
        (projection.leave, leave, mean),
    ):
        layer.kernel[...] = jnp.asarray(kernel, jnp.float32)
        if layer.bias is not None:
            layer.bias[...] = jnp.asarray(bias, jnp.float32)


def closest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Index of the nearest centre of each point."""
    return np.argmin(np.sum(centres**2, axis=1) - 2.0 * points @ centres.T, axis=1)


def k_means(points: np.ndarray, count: int, rng: np.random.Generator, rounds: int) -> np.ndarray:
    """Lloyd's rounds from random points; a centre that wins none moves to a random point."""
    more = count > len(points)
    centres = points[rng.choice(len(points), count, replace=more)]
    if more:
        centres = centres + 1e-3 * points.std() * rng.normal(size=centres.shape)
    for _ in range(rounds):
        owner = closest(points, centres)
        sizes = np.bincount(owner, minlength=count)
        sums = np.zeros_like(centres)
        np.add.at(sums, owner, points)
        fresh = points[rng.choice(len(points), count)]
        centres = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], fresh)
    return centres.astype(np.float32)
