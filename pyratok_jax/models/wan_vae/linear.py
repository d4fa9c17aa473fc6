"""A linear code of blocks of pixels beside the network of a small VAE.

A block is encoded by one matrix and decoded from its latent and the ones around and before it. With
principal components as the matrix and least squares for the decoder this is worth about as much as
a small network gives after hours on few cores; the network then learns the residual.
"""

from typing import Unpack

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.nn.causal_conv import CausalConv3d, LayerSettings
from pyratok_jax.nn.stream_cache import StreamCache

Values = Array | np.ndarray


class LinearPath(nnx.Module):
    """Blocks of (time, space, space) pixels to latents and back; all zero at first.

    The first frame has its own blocks, of (1, space, space) pixels. Pixels of a block are ordered
    (frame, row, column, colour).

    Attributes:
        first_in, later_in: matrices (pixels, z) from a block to its latent, and `*_bias`.
        first_out, later_out: convolutions from latents to blocks, which see 3x3 latents, later ones
            also those of the latent frame before.
    """

    def __init__(self, config: WanVAEConfig, **settings: Unpack[LayerSettings]):
        self.time, self.space = config.temporal_factor, config.spatial_factor
        z, frame = config.z_dim, 3 * self.space**2
        self.dtype = settings.get("dtype", jnp.float32)
        param_dtype = settings.get("param_dtype", jnp.float32)

        def zeros(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.zeros(shape, param_dtype))

        self.first_in, self.later_in = zeros(frame, z), zeros(self.time * frame, z)
        self.first_in_bias, self.later_in_bias = zeros(z), zeros(z)
        self.first_out = CausalConv3d(z, frame, (1, 3, 3), **settings)
        self.later_out = CausalConv3d(z, self.time * frame, (2, 3, 3), **settings)
        for layer in (self.first_out, self.later_out):
            layer.kernel.set_value(jnp.zeros_like(layer.kernel[...]))

    def encode(
        self, video: Float[Array, "b t h w 3"], *, first: bool = True
    ) -> Float[Array, "b t2 h2 w2 z"]:
        """Latents of a clip in [-1, 1]; `first` says whether it starts with the first frame."""
        parts = []
        if first:
            parts.append(self._project(video[:, :1], 1, self.first_in, self.first_in_bias))
        if video.shape[1] > first:
            later = video[:, int(first) :]
            parts.append(self._project(later, self.time, self.later_in, self.later_in_bias))
        return jnp.concatenate(parts, axis=1)

    def decode(
        self, z: Float[Array, "b t h w z"], cache: StreamCache | None = None
    ) -> Float[Array, "b T H W 3"]:
        """Video of latents; with a cache, one chunk of it."""
        blocks = self.later_out(z, cache)
        if cache is not None and not cache.first:
            return jnp.asarray(from_blocks(blocks, self.time, self.space))
        start = from_blocks(self.first_out(z[:, :1]), 1, self.space)
        later = from_blocks(blocks[:, 1:], self.time, self.space)
        return jnp.concatenate([start, later], axis=1)

    def _project(self, video: Array, time: int, matrix: nnx.Param, bias: nnx.Param) -> Array:
        blocks = to_blocks(video.astype(self.dtype), time, self.space)
        return jnp.asarray(blocks) @ matrix[...].astype(self.dtype) + bias[...].astype(self.dtype)


def to_blocks(
    video: Float[Values, "b t h w 3"], time: int, space: int
) -> Float[Values, "b t2 h2 w2 c"]:
    """Fold blocks of (time, space, space) pixels into channels; of NumPy arrays, too."""
    b, t, h, w, c = video.shape
    x = video.reshape(b, t // time, time, h // space, space, w // space, space, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(
        b, t // time, h // space, w // space, time * space * space * c
    )


def from_blocks(
    blocks: Float[Values, "b t h w c"], time: int, space: int
) -> Float[Values, "b t2 h2 w2 3"]:
    """Inverse of `to_blocks`."""
    b, t, h, w, c = blocks.shape
    colours = c // (time * space * space)
    x = blocks.reshape(b, t, h, w, time, space, space, colours)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t * time, h * space, w * space, colours)
