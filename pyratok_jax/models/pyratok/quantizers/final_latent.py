"""Quantisers of the final latent alone: what they share, and the one that quantises nothing.

They map the latent to a feature space and back (`LatentProjection`), and they start from data: the
pyramid's levels start from fitted linear codes (`lapq_fitting`), and a comparison is fair only when
the others do too. Principal components give the projections, k-means the codebooks, least squares
the way back from lookup-free codes. Errors of latents do not count alike in all channels:
e M e = |e R|^2 with R the root of a metric M.
"""

import dataclasses
from collections.abc import Sequence
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.models.pyratok.quantizers import base
from pyratok_jax.models.pyratok.quantizers.base import Latents, Quantizer
from pyratok_jax.nn.causal_conv import CausalConv3d
from pyratok_jax.nn.grids import depth_to_space, space_to_depth
from pyratok_jax.nn.partitioning import convolve


def square_root(metric: Float[np.ndarray, "z z"]) -> Float[np.ndarray, "z z"]:
    """The symmetric root R of a positive definite metric M = R R."""
    values, vectors = np.linalg.eigh(metric)
    return (vectors * np.sqrt(values)) @ vectors.T


def each_position(
    patches: Float[np.ndarray, "n d"], matrix: Float[np.ndarray, "z z"]
) -> Float[np.ndarray, "n d"]:
    """Vectors of whole patches (d = positions x z), every position's channels through a matrix."""
    return (patches.reshape(len(patches), -1, len(matrix)) @ matrix).reshape(patches.shape)


def energy(latents: Sequence[Array | np.ndarray], root: Float[np.ndarray, "z z"]) -> float:
    """Mean square of (b, t, h, w, z) arrays by the metric with that root."""
    return float(np.mean([np.mean(np.square(np.asarray(x) @ root)) for x in latents]))


class LatentProjection(nnx.Module):
    """A linear map of patches of r x r latent positions, and its counterpart with smoothing.

    The way back ends, as LaPQ's synthesis does, in a residual causal convolution that starts at
    zero, so that quantisers are compared with like decoders.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        width: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.patch = patch
        size = patch**2 * channels
        self.enter = nnx.Linear(size, width, rngs=rngs)
        self.leave = nnx.Linear(width, size, rngs=rngs, dtype=dtype)
        self.smooth_in = CausalConv3d(channels, hidden, (3, 3, 3), rngs=rngs, dtype=dtype)
        self.smooth_out = CausalConv3d(hidden, channels, (3, 3, 3), rngs=rngs, dtype=dtype)
        self.smooth_out.kernel[...] = jnp.zeros_like(self.smooth_out.kernel[...])

    def features(self, latent: Float[Array, "b t H W z"]) -> Float[Array, "b t h w d"]:
        """What is quantised, float32."""
        return self.enter(space_to_depth(latent.astype(jnp.float32), self.patch))

    def latent(self, features: Float[Array, "b t h w d"]) -> Float[Array, "b t H W z"]:
        """Latent of (quantised) features."""
        x = depth_to_space(self.leave(features), self.patch)
        return x + convolve(self.smooth_out, jax.nn.silu(convolve(self.smooth_in, x)))


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


@dataclasses.dataclass(frozen=True)
class ContinuousConfig:
    """There is nothing to choose."""

    @classmethod
    def of(cls, sizes: base.TokenizerSizes) -> "ContinuousConfig":
        """Those of a tokenizer.

        Raises:
            ValueError: see `check_latent_grids`.
        """
        base.check_latent_grids(sizes, several_levels=False)
        return cls()


class ContinuousLatent(base.Quantizer):
    """Passes the normalised latent on as it is."""

    makes_tokens = False

    def __init__(self, config: ContinuousConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """It has no weights."""

    def quantize(self, inputs: base.Inputs) -> base.Quantized:
        """No levels, and the latent itself."""
        return (), inputs.target

    def synthesize(self, codes: base.Codes, cache: base.Cache = None) -> NoReturn:
        """Refuse: there are no codes.

        Raises:
            ValueError: always.
        """
        raise ValueError("quantizer none makes no tokens: there is nothing to decode from")

    def fit_to(self, data: base.FitData) -> list[float]:
        """Nothing to fit; no error."""
        return [0.0]
