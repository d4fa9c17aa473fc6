"""Layers of the Wan VAE: causal convolution, spatial convolution, norm, attention, residual block.

Layouts are channels-last. Every layer with a `kernel` has an `adapter` slot: when it is filled, the
kernel that the layer uses is `adapter(kernel)`. Layers that look back in time take a `StreamCache`
when a clip is streamed in chunks.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.nn import trace
from pyratok_jax.nn.causal_conv import KEPT, CausalConv3d, Conv2d
from pyratok_jax.nn.custom_vjps import TINY, normalise
from pyratok_jax.nn.frame_attention import attend
from pyratok_jax.nn.halo import cut, join
from pyratok_jax.nn.lowering import current_lowering
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
