"""Layers of Stable Video Diffusion's VAE: two-dimensional ones, and blends of space and time."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pyratok_jax.models import vae_parts
from pyratok_jax.models.vae_parts import AttentionBlock
from pyratok_jax.nn.causal_conv import KEPT, Conv2d, TimeConv
from pyratok_jax.nn.group_norm import GroupNorm
from pyratok_jax.nn.stream_cache import StreamCache


def frame_norm(features: int, **settings) -> GroupNorm:
    """Group norm over each frame, 32 groups."""
    param: dict[str, Any] = {"param_dtype": settings.get("param_dtype", jnp.float32)}
    return GroupNorm(features, 32, epsilon=1e-6, per_frame=True, **param)


class ResidualBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv of every frame, plus a shortcut."""

    def __init__(self, before: int, after: int, **settings):
        self.norm1 = frame_norm(before, **settings)
        self.conv1 = Conv2d(before, after, (3, 3), **settings)
        self.norm2 = frame_norm(after, **settings)
        self.conv2 = Conv2d(after, after, (3, 3), **settings)
        self.conv_shortcut = Conv2d(before, after, (1, 1), **settings) if before != after else None

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w d"]:
        """The block's output; the shortcut reads the un-normalised input."""
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = checkpoint_name(self.conv1(self.norm1(x, activate=True), (1, 1)), KEPT)
        return checkpoint_name(self.conv2(self.norm2(x, activate=True), (1, 1)) + shortcut, KEPT)


class TimeBlock(nnx.Module):
    """norm, SiLU, convolution over time, twice, plus the input; a frame sees those around it."""

    def __init__(self, features: int, **settings):
        param: dict[str, Any] = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        self.norm1, self.norm2 = (GroupNorm(features, 32, epsilon=1e-5, **param) for _ in range(2))
        self.conv1, self.conv2 = (
            TimeConv(features, features, (3, 1, 1), **settings) for _ in range(2)
        )

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        y = over_time(self.conv1, self.norm1(x, activate=True))
        return x + over_time(self.conv2, self.norm2(y, activate=True))


def over_time(layer: TimeConv, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
    """`layer` with one zero frame before and one after the clip."""
    return layer(jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0))))


class TimeMixer(nnx.Module):
    """A learned blend of two features."""

    def __init__(self, **settings):
        self.mix_factor = nnx.Param(jnp.zeros((1,), settings.get("param_dtype", jnp.float32)))

    def __call__(
        self, space: Float[Array, "b t h w c"], time: Float[Array, "b t h w c"]
    ) -> Float[Array, "b t h w c"]:
        """(1 - s) space + s time, s = sigmoid(mix_factor)."""
        wide = jnp.promote_types(space.dtype, jnp.float32)
        s = jax.nn.sigmoid(self.mix_factor[...].astype(wide)).astype(space.dtype)
        return (1 - s) * space + s * time


class SpaceTimeBlock(nnx.Module):
    """A residual block of every frame, blended with one over time of its output."""

    def __init__(self, before: int, after: int, **settings):
        self.spatial_res_block = ResidualBlock(before, after, **settings)
        self.temporal_res_block = TimeBlock(after, **settings)
        self.time_mixer = TimeMixer(**settings)

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w d"]:
        """The block's output."""
        x = self.spatial_res_block(x)
        return self.time_mixer(x, self.temporal_res_block(x))


class MidBlock(vae_parts.MidBlock):
    """A block, attention within frames, a block; `block` is the class of its blocks."""

    def __init__(self, features: int, block: type[ResidualBlock | SpaceTimeBlock], **settings):
        blocks = [block(features, features, **settings) for _ in range(2)]
        norm = frame_norm(features, **settings)
        super().__init__(blocks, AttentionBlock(norm, over_clip=False, **settings))


class Resample(nnx.Module):
    """The convolution after or before a change of size."""

    def __init__(self, features: int, **settings):
        self.conv = Conv2d(features, features, (3, 3), **settings)
