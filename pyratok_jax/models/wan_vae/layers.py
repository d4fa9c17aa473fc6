"""Layers of the Wan VAE: norm, attention, residual block, down- and upsampling, their shortcuts.

Layouts are channels-last. Every layer with a `kernel` has an `adapter` slot: when it is filled, the
kernel that the layer uses is `adapter(kernel)`. Layers that look back in time take a `StreamCache`
when a clip is streamed in chunks. Time is causal: frame 0 is always separate, so 1 + 2n frames
become 1 + n and back.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.nn import trace
from pyratok_jax.nn.causal_conv import KEPT, CausalConv3d, Conv2d, TimeConv
from pyratok_jax.nn.custom_vjps import TINY, normalise
from pyratok_jax.nn.frame_attention import attend
from pyratok_jax.nn.halo import cut, join
from pyratok_jax.nn.lowering import current_lowering, trim
from pyratok_jax.nn.stream_cache import StreamCache


class ChannelNorm(nnx.Module):
    """x / ||x||_2 * sqrt(C) * gamma over the channels, in float32; no bias.

    The reference divides by max(||x||, 1e-12). Written with the squared norm, the gradient at a
    zero vector is finite, which sqrt's is not.
    """

    def __init__(self, features: int, *, param_dtype: DTypeLike = jnp.float32):
        self.gamma = nnx.Param(jnp.ones((features,), param_dtype))

    def __call__(self, x: Float[Array, "*n c"], *, activate: bool = False) -> Float[Array, "*n c"]:
        """Normalised `x`, same dtype; SiLU of that where `activate`."""
        gamma = self.gamma[...].astype(jnp.float32)
        features = gamma.shape[0]
        gamma = jnp.pad(gamma, (0, x.shape[-1] - features))
        if current_lowering() == "tpu" and x.ndim == 5:
            return normalise(x, gamma, features, activate, trace.current())
        y = x.astype(jnp.float32)
        scale = lax.rsqrt(jnp.maximum(jnp.sum(y * y, axis=-1, keepdims=True), TINY))
        y = (y * scale * (features**0.5) * gamma).astype(x.dtype)
        return jax.nn.silu(y) if activate else y


class ResidualBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus a 1x1x1 shortcut where the width changes."""

    def __init__(self, in_features: int, out_features: int, **settings):
        norm = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        self.norm1 = ChannelNorm(in_features, **norm)
        self.conv1 = CausalConv3d(in_features, out_features, (3, 3, 3), **settings)
        self.norm2 = ChannelNorm(out_features, **norm)
        self.conv2 = CausalConv3d(out_features, out_features, (3, 3, 3), **settings)
        self.conv_shortcut = (
            CausalConv3d(in_features, out_features, (1, 1, 1), **settings)
            if in_features != out_features
            else None
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w d"]:
        """The block's output; the shortcut reads the un-normalised input."""
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = checkpoint_name(self.conv1(self.norm1(x, activate=True), cache), KEPT)
        x = self.conv2(self.norm2(x, activate=True), cache)
        # An input from outside may be narrower than an output padded to the lane width.
        missing = x.shape[-1] - shortcut.shape[-1]
        if missing:
            shortcut = jnp.pad(shortcut, ((0, 0),) * 4 + ((0, missing),))
        return checkpoint_name(x + shortcut, KEPT)


class AttentionBlock(nnx.Module):
    """Single-head self-attention over the positions of each frame, with a residual."""

    def __init__(self, features: int, **settings):
        norm = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        self.norm = ChannelNorm(features, **norm)
        self.to_qkv = Conv2d(features, 3 * features, (1, 1), **settings)
        self.proj = Conv2d(features, features, (1, 1), **settings)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Attend within each frame."""
        qkv = join(self.to_qkv(self.norm(x)))
        b, t, h, w, c = *qkv.shape[:-1], x.shape[-1]
        q, k, v = jnp.split(qkv.reshape(b * t, h * w, 3 * c), 3, axis=-1)
        return x + self.proj(cut(attend(q, k, v).reshape(b, t, h, w, c)))


class MidBlock(nnx.Module):
    """Residual block, attention, residual block at the latent resolution."""

    def __init__(self, features: int, **settings):
        self.resnets = nnx.List([ResidualBlock(features, features, **settings) for _ in range(2)])
        self.attentions = nnx.List([AttentionBlock(features, **settings)])

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        x = self.attentions[0](self.resnets[0](x, cache))
        return self.resnets[1](x, cache)


class Downsample(nnx.Module):
    """Halve the sides (3x3 convolution, stride 2, padded right and bottom) and maybe time.

    Where the sides are kept, the convolution is one of the same size.
    """

    def __init__(self, features: int, *, halves_time: bool, halves_space: bool = True, **settings):
        self.spatial = Conv2d(features, features, (3, 3), **settings)
        self.halves_space = halves_space
        self.time_conv = (
            TimeConv(features, features, (3, 1, 1), **settings) if halves_time else None
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """Frame 0 passes the temporal part untouched; later ones come in pairs."""
        halved = {"padding": (0, 1), "stride": 2} if self.halves_space else {"padding": (1, 1)}
        x = self.spatial(x, **halved)
        if self.time_conv is None:
            return x
        if cache is not None and not cache.first:
            return self.time_conv(cache.join(self, x, 1), stride=2)
        if cache is not None:
            cache.keep(self, x[:, -1:])
        if x.shape[1] == 1:
            return x
        return jnp.concatenate([x[:, :1], self.time_conv(x, stride=2)], axis=1)


class Upsample(nnx.Module):
    """Double time (maybe), then the sides (maybe): nearest neighbour and a 3x3 convolution."""

    def __init__(
        self,
        features: int,
        out_features: int,
        *,
        doubles_time: bool,
        doubles_space: bool = True,
        **settings,
    ):
        self.spatial = Conv2d(features, out_features, (3, 3), **settings)
        self.doubles_space = doubles_space
        self.time_conv = (
            TimeConv(features, 2 * features, (3, 1, 1), **settings) if doubles_time else None
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """1 + n frames become 1 + 2n where time is doubled."""
        if self.time_conv is not None:
            x = trim(x, self.time_conv.kernel.shape[-2])
            if cache is not None and not cache.first:
                x = self.double_time(cache.join(self, x, 2))
            else:
                # Frame 0 is invisible to the convolution: what follows sees two zero frames.
                later = jnp.pad(x[:, 1:], ((0, 0), (2, 0), (0, 0), (0, 0), (0, 0)))
                if cache is not None:
                    cache.keep(self, later[:, -2:])
                if x.shape[1] > 1:
                    x = jnp.concatenate([x[:, :1], self.double_time(later)], axis=1)
        return self.spatial.after_upsampling(x) if self.doubles_space else self.spatial(x, (1, 1))

    def double_time(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h w c"]:
        """Frames after the first, doubled; `x` starts with the two frames before them.

        Of the 2C channels the first half are the even frames, the second half the odd ones.
        """
        assert self.time_conv is not None
        y = self.time_conv(x, pad=False)
        b, t, h, w, c = y.shape
        y = y.reshape(b, t, h, w, 2, c // 2).transpose(0, 1, 4, 2, 3, 5)
        return y.reshape(b, 2 * t, h, w, c // 2)


def patchify(video: Float[Array, "b t h w 3"], patch: int) -> Float[Array, "b t h2 w2 c"]:
    """Fold patches of pixels into channels, ordered (colour, column, row)."""
    if patch == 1:
        return video
    b, t, h, w, c = video.shape
    x = video.reshape(b, t, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 2, 4, 6, 5, 3).reshape(b, t, h // patch, w // patch, -1)


def unpatchify(x: Float[Array, "b t h2 w2 c"], patch: int) -> Float[Array, "b t h w 3"]:
    """Inverse of `patchify`."""
    if patch == 1:
        return x
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, c // patch**2, patch, patch)
    return x.transpose(0, 1, 2, 6, 3, 5, 4).reshape(b, t, h * patch, w * patch, -1)


def average_down(
    x: Float[Array, "b t h w c"], out_features: int, time: int, space: int
) -> Float[Array, "b t2 h2 w2 d"]:
    """Shortcut of a residual encoder stage: fold (time, space, space) into channels and average.

    Time is padded with zero frames at the front. Folded channels are ordered (channel, time,
    row, column); groups of consecutive ones are averaged down to `out_features`.
    """
    fill = -x.shape[1] % time
    x = jnp.pad(x, ((0, 0), (fill, 0), (0, 0), (0, 0), (0, 0)))
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // time, time, h // space, space, w // space, space, c)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return jnp.mean(x.reshape(*x.shape[:4], out_features, -1), axis=-1)


def duplicate_up(
    x: Float[Array, "b t h w c"], out_features: int, time: int, space: int, *, first: bool = True
) -> Float[Array, "b t2 h2 w2 d"]:
    """Shortcut of a residual decoder stage: repeat channels, unfold into (time, space, space).

    Where time is doubled, the first of the two frames made of frame 0 is dropped: 1 + 2n come out.
    `first` says whether `x` starts with frame 0.
    """
    b, t, h, w, c = x.shape
    x = jnp.repeat(x, out_features * time * space * space // c, axis=-1)
    x = x.reshape(b, t, h, w, out_features, time, space, space)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, t * time, h * space, w * space, out_features)
    return x[:, time - 1 :] if first else x
