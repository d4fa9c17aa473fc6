"""A linear autoencoder of blocks of pixels, beside the network of a small VAE.

With the principal components of blocks as weights it is the best linear code of its size; the
network then learns what is left, from the first step on.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.models.wan_vae.config import WanVAEConfig


class LinearPath(nnx.Module):
    """Blocks of (time, space, space) pixels to latents and back, each by one matrix; zero at first.

    The first frame makes a block of its own, (1, space, space) pixels, with its own matrices.
    Pixels of a block are ordered (frame, row, column, colour).

    Attributes:
        first_in, first_out, later_in, later_out: matrices from pixels to latents and back, and
            `*_bias` what is added.
    """

    def __init__(
        self,
        config: WanVAEConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        self.time, self.space = config.temporal_factor, config.spatial_factor
        z, frame = config.z_dim, 3 * self.space**2
        self.dtype = dtype

        def zeros(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.zeros(shape, param_dtype))

        self.first_in, self.first_out = zeros(frame, z), zeros(z, frame)
        self.later_in, self.later_out = zeros(self.time * frame, z), zeros(z, self.time * frame)
        self.first_in_bias, self.first_out_bias = zeros(z), zeros(frame)
        self.later_in_bias, self.later_out_bias = zeros(z), zeros(self.time * frame)

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
        self, z: Float[Array, "b t h w z"], *, first: bool = True
    ) -> Float[Array, "b T H W 3"]:
        """Video of latents; `first` says whether they start with the first frame's."""
        parts = []
        if first:
            parts.append(self._expand(z[:, :1], 1, self.first_out, self.first_out_bias))
        if z.shape[1] > first:
            later = z[:, int(first) :]
            parts.append(self._expand(later, self.time, self.later_out, self.later_out_bias))
        return jnp.concatenate(parts, axis=1)

    def _project(self, video: Array, time: int, matrix: nnx.Param, bias: nnx.Param) -> Array:
        blocks = to_blocks(video.astype(self.dtype), time, self.space)
        return blocks @ matrix[...].astype(self.dtype) + bias[...].astype(self.dtype)

    def _expand(self, z: Array, time: int, matrix: nnx.Param, bias: nnx.Param) -> Array:
        blocks = z.astype(self.dtype) @ matrix[...].astype(self.dtype) + bias[...].astype(self.dtype)
        return from_blocks(blocks, time, self.space)


def to_blocks(
    video: Float[Array, "b t h w 3"], time: int, space: int
) -> Float[Array, "b t2 h2 w2 c"]:
    """Fold blocks of (time, space, space) pixels into channels."""
    b, t, h, w, c = video.shape
    x = video.reshape(b, t // time, time, h // space, space, w // space, space, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(
        b, t // time, h // space, w // space, time * space * space * c
    )


def from_blocks(
    blocks: Float[Array, "b t h w c"], time: int, space: int
) -> Float[Array, "b t2 h2 w2 3"]:
    """Inverse of `to_blocks`."""
    b, t, h, w, c = blocks.shape
    x = blocks.reshape(b, t, h, w, time, space, space, c // (time * space * space))
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t * time, h * space, w * space, -1)
