"""Layers of the Mochi VAE.

The past of every convolution is copies of its first input frame; frames are padded with copies of
their edges. Norms take their statistics over each frame.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pyratok_jax.nn.causal_conv import KEPT, Conv2d
from pyratok_jax.nn.first_frame_conv import FirstFrameConv3d
from pyratok_jax.nn.group_norm import GroupNorm
from pyratok_jax.nn.stream_cache import StreamCache

FREQUENCIES = (6, 7)  # of the Fourier features: sin and cos of 2 pi 2^k x
HEAD = 32  # channels of a head
SCORES = 2**27  # attention scores that are held at once; beyond, rows of frames follow each other
_TINY = 1e-12


def fourier_features(video: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
    """Pixels with the sines and cosines of each at two frequencies, in float32.

    Channels are the pixels, then the sines (both frequencies of a colour adjacent), then the
    cosines. A narrower dtype would lose the phase, which reaches 2^7 turns.
    """
    x = video.astype(jnp.promote_types(video.dtype, jnp.float32))
    turns = 2 * jnp.pi * jnp.array([2.0**k for k in FREQUENCIES], x.dtype)
    phases = (x[..., None] * turns).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([x, jnp.sin(phases), jnp.cos(phases)], axis=-1)


def frame_norm(features: int, **settings) -> GroupNorm:
    """Group norm over each frame, 32 groups."""
    param: dict[str, Any] = {"param_dtype": settings.get("param_dtype", jnp.float32)}
    return GroupNorm(features, 32, epsilon=1e-5, per_frame=True, **param)


class ResidualBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input."""

    def __init__(self, features: int, **settings):
        self.norm1, self.norm2 = (frame_norm(features, **settings) for _ in range(2))
        self.conv1, self.conv2 = (
            FirstFrameConv3d(features, features, edges="replicate", **settings) for _ in range(2)
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        y = checkpoint_name(self.conv1(self.norm1(x, activate=True), cache), KEPT)
        return checkpoint_name(x + self.conv2(self.norm2(y, activate=True), cache), KEPT)


class TimeAttention(nnx.Module):
    """Every position over time, causally: a frame sees itself and earlier ones.

    Queries and keys are of unit length; heads have 32 channels.
    """

    def __init__(self, features: int, **settings):
        self.to_q, self.to_k, self.to_v = (
            Conv2d(features, features, (1, 1), use_bias=False, **settings) for _ in range(3)
        )
        self.to_out = nnx.List([Conv2d(features, features, (1, 1), **settings)])

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        b, t, h, w, c = x.shape

        def heads(y: Array) -> Array:
            return y.reshape(b, t, h, w, c // HEAD, HEAD)

        q, k = (_unit(heads(layer(x))) for layer in (self.to_q, self.to_k))
        v = heads(self.to_v(x))
        if b * h * w * t * t * (c // HEAD) <= SCORES:
            y = _attend(q, k, v)
        else:
            rows = tuple(jnp.moveaxis(each, 2, 0) for each in (q, k, v))
            one_row = jax.checkpoint(lambda row: _attend(*(each[:, :, None] for each in row)))
            y = jnp.moveaxis(lax.map(one_row, rows)[:, :, :, 0], 0, 2)
        return self.to_out[0](y.reshape(b, t, h, w, c))


def _unit(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(y * y, axis=-1, keepdims=True)
    return (y * lax.rsqrt(jnp.maximum(squares, _TINY**2))).astype(x.dtype)


def _attend(
    q: Float[Array, "b t h w n d"], k: Float[Array, "b t h w n d"], v: Float[Array, "b t h w n d"]
) -> Float[Array, "b t h w n d"]:
    b, t, h, w, n, d = q.shape
    query, key, value = (jnp.moveaxis(x, 1, 3).reshape(b * h * w, t, n, d) for x in (q, k, v))
    y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    return jnp.moveaxis(y.reshape(b, h, w, t, n, d), 3, 1)


class Blocks(nnx.Module):
    """Residual blocks, each followed by attention over time where `attends`."""

    def __init__(self, features: int, layers: int, *, attends: bool, **settings):
        count = layers if attends else 0
        self.resnets = nnx.List([ResidualBlock(features, **settings) for _ in range(layers)])
        self.norms = nnx.List([frame_norm(features, **settings) for _ in range(count)])
        self.attentions = nnx.List([TimeAttention(features, **settings) for _ in range(count)])

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        for index, block in enumerate(self.resnets):
            x = block(x, cache)
            if self.attentions:
                x = x + self.attentions[index](self.norms[index](x))
        return x


class DownBlock(Blocks):
    """A convolution that joins pixels and frames, then blocks with attention."""

    def __init__(self, before: int, after: int, layers: int, time: int, **settings):
        super().__init__(after, layers, attends=True, **settings)
        window = (time, 2, 2)
        self.conv_in = FirstFrameConv3d(before, after, window, strides=window, **settings)

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """1 + time n frames become 1 + n."""
        return super().__call__(self.conv_in(x))


class UpBlock(Blocks):
    """Blocks, then a linear map whose channels are unfolded into frames and pixels."""

    def __init__(
        self, before: int, after: int, layers: int, time: int, *, keeps_first: bool, **settings
    ):
        super().__init__(before, layers, attends=False, **settings)
        self.proj = Conv2d(before, after * time * 4, (1, 1), **settings)
        self.time, self.keeps_first = time, keeps_first

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """n frames become time n, of which the first time - 1 of a clip are dropped."""
        y = self.proj(super().__call__(x, cache))
        b, t, h, w, c = y.shape
        # Channels are ordered (channel, frame, row, column).
        y = y.reshape(b, t, h, w, c // (self.time * 4), self.time, 2, 2)
        y = y.transpose(0, 1, 5, 2, 6, 3, 7, 4)
        y = y.reshape(b, t * self.time, 2 * h, 2 * w, c // (self.time * 4))
        drops = not self.keeps_first and (cache is None or cache.first)
        return y[:, self.time - 1 :] if drops else y
