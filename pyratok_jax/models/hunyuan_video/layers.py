"""Layers of the HunyuanVideo VAE.

The past of every convolution is copies of its first input frame; frames are padded with copies of
their edges.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pyratok_jax.models import vae_parts
from pyratok_jax.models.vae_parts import AttentionBlock
from pyratok_jax.nn.causal_conv import KEPT
from pyratok_jax.nn.first_frame_conv import FirstFrameConv3d
from pyratok_jax.nn.group_norm import GroupNorm
from pyratok_jax.nn.stream_cache import StreamCache


class ResidualBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus a 1x1x1 shortcut where the width changes."""

    def __init__(self, before: int, after: int, groups: int, **settings):
        param = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        self.norm1 = GroupNorm(before, groups, **param)
        self.conv1 = FirstFrameConv3d(before, after, edges="replicate", **settings)
        self.norm2 = GroupNorm(after, groups, **param)
        self.conv2 = FirstFrameConv3d(after, after, edges="replicate", **settings)
        self.conv_shortcut = (
            FirstFrameConv3d(before, after, (1, 1, 1), **settings) if before != after else None
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w d"]:
        """The block's output; the shortcut reads the un-normalised input."""
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = checkpoint_name(self.conv1(self.norm1(x, activate=True)), KEPT)
        return checkpoint_name(self.conv2(self.norm2(x, activate=True)) + shortcut, KEPT)


class MidBlock(vae_parts.MidBlock):
    """Attention over the clip, between residual blocks."""

    def __init__(self, features: int, groups: int, **settings):
        blocks = [ResidualBlock(features, features, groups, **settings) for _ in range(2)]
        param = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        norm = GroupNorm(features, groups, **param)
        super().__init__(blocks, AttentionBlock(norm, over_clip=True, **settings))


class Downsample(nnx.Module):
    """A 3x3x3 convolution with stride 2 in space and maybe time: 1 + 2n frames become 1 + n."""

    def __init__(self, features: int, *, halves_time: bool, **settings):
        strides = (2 if halves_time else 1, 2, 2)
        shape: Any = {"strides": strides, "edges": "replicate"}
        self.conv = FirstFrameConv3d(features, features, **shape, **settings)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 c"]:
        """Smaller frames, maybe fewer."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest neighbour in space and maybe time, where frame 0 stands apart; then a convolution."""

    def __init__(self, features: int, *, doubles_time: bool, **settings):
        self.conv = FirstFrameConv3d(features, features, edges="replicate", **settings)
        self.doubles_time = doubles_time

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 c"]:
        """1 + n frames become 1 + 2n where time is doubled."""
        if self.doubles_time:
            x = jnp.concatenate([x[:, :1], jnp.repeat(x[:, 1:], 2, axis=1)], axis=1)
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3))
