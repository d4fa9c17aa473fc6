"""Layers of the CogVideoX VAE: norms, residual blocks, down- and upsampling.

The past of every convolution is copies of its first input frame; frames are padded with zeros.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pyratok_jax.nn.causal_conv import KEPT, Conv2d
from pyratok_jax.nn.first_frame_conv import FirstFrameConv3d
from pyratok_jax.nn.group_norm import GroupNorm
from pyratok_jax.nn.stream_cache import StreamCache


def is_first(cache: StreamCache | None) -> bool:
    """Whether frames start with frame 0 of the clip."""
    return cache is None or cache.first


def repeat_later(
    x: Float[Array, "b t h w c"], times: int, *, first: bool
) -> Float[Array, "b t2 h w c"]:
    """Every frame `times` times, but frame 0, which `x` starts with if `first`, once."""
    if times == 1:
        return x
    if not first:
        return jnp.repeat(x, times, axis=1)
    return jnp.concatenate([x[:, :1], jnp.repeat(x[:, 1:], times, axis=1)], axis=1)


def average_pairs(x: Float[Array, "b t h w c"], *, first: bool) -> Float[Array, "b t2 h w c"]:
    """Means of pairs of frames, frame 0 apart if `first`: 1 + 2n frames become 1 + n."""
    start = x[:, : int(first)]
    b, t, *rest = x[:, int(first) :].shape
    pairs = x[:, int(first) :].reshape(b, t // 2, 2, *rest)
    return jnp.concatenate([start, jnp.mean(pairs, axis=2)], axis=1)


class SpatialNorm(nnx.Module):
    """Group norm whose scale and bias are linear in the latent (arXiv 2209.09002)."""

    def __init__(self, features: int, latent: int, groups: int, **settings):
        norm = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        self.norm_layer = GroupNorm(features, groups, **norm)
        self.conv_y = FirstFrameConv3d(latent, features, (1, 1, 1), **settings)
        self.conv_b = FirstFrameConv3d(latent, features, (1, 1, 1), **settings)

    def __call__(
        self, x: Float[Array, "b t h w c"], z: Float[Array, "b t2 h2 w2 z"], *, first: bool
    ) -> Float[Array, "b t h w c"]:
        """SiLU of the normalised `x`, conditioned on the nearest latent of each position."""
        # At the latent's size and then repeated: the same values for a fraction of the work.
        scale, bias = (self._nearest(layer(z), x, first) for layer in (self.conv_y, self.conv_b))
        return jax.nn.silu(self.norm_layer(x) * scale + bias)

    @staticmethod
    def _nearest(y: Array, x: Array, first: bool) -> Array:
        if y.shape[1] > int(first):
            y = repeat_later(y, (x.shape[1] - first) // (y.shape[1] - first), first=first)
        y = jnp.repeat(y, x.shape[2] // y.shape[2], axis=2)
        return jnp.repeat(y, x.shape[3] // y.shape[3], axis=3)


class ResidualBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus a 1x1x1 shortcut where the width changes.

    With `latent` channels its norms are conditioned on a latent (decoder).
    """

    def __init__(self, before: int, after: int, groups: int, latent: int = 0, **settings):
        param = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        self.norm1: SpatialNorm | GroupNorm
        self.norm2: SpatialNorm | GroupNorm
        if latent:
            self.norm1 = SpatialNorm(before, latent, groups, **settings)
            self.norm2 = SpatialNorm(after, latent, groups, **settings)
        else:
            self.norm1 = GroupNorm(before, groups, **param)
            self.norm2 = GroupNorm(after, groups, **param)
        self.conv1 = FirstFrameConv3d(before, after, **settings)
        self.conv2 = FirstFrameConv3d(after, after, **settings)
        self.conv_shortcut = (
            FirstFrameConv3d(before, after, (1, 1, 1), **settings) if before != after else None
        )

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        cache: StreamCache | None = None,
        z: Float[Array, "b t2 h2 w2 z"] | None = None,
    ) -> Float[Array, "b t h w d"]:
        """The block's output; the shortcut reads the un-normalised input."""
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = checkpoint_name(self.conv1(self._norm(self.norm1, x, z, cache), cache), KEPT)
        x = self.conv2(self._norm(self.norm2, x, z, cache), cache)
        return checkpoint_name(x + shortcut, KEPT)

    @staticmethod
    def _norm(
        norm: SpatialNorm | GroupNorm, x: Array, z: Array | None, cache: StreamCache | None
    ) -> Array:
        if isinstance(norm, GroupNorm):
            return norm(x, activate=True)
        assert z is not None
        return norm(x, z, first=is_first(cache))


class Downsample(nnx.Module):
    """A 3x3 convolution with stride 2 of every frame; the caller halves time afterwards.

    The published order is time first. Both are linear, so that the order does not matter, and
    between them every frame has its feature at half the size.
    """

    def __init__(self, features: int, **settings):
        self.conv = Conv2d(features, features, (3, 3), **settings)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c"]:
        """Frames at half the size."""
        return self.conv(x, padding=(0, 1), stride=2)


class Upsample(nnx.Module):
    """Nearest neighbour in time (maybe) and space, then a 3x3 convolution of every frame."""

    def __init__(self, features: int, *, doubles_time: bool, **settings):
        self.conv = Conv2d(features, features, (3, 3), **settings)
        self.doubles_time = doubles_time

    def __call__(
        self, x: Float[Array, "b t h w c"], *, first: bool
    ) -> Float[Array, "b t2 h2 w2 c"]:
        """1 + n frames become 1 + 2n where time is doubled and `x` starts with frame 0."""
        # Frames are convolved before they are repeated: each is computed once.
        return repeat_later(self.conv.after_upsampling(x), 1 + self.doubles_time, first=first)
