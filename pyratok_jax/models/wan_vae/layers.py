"""Layers of the Wan VAE: causal convolution, spatial convolution, norm, attention, residual block.

Layouts are channels-last. Every layer with a `kernel` has an `adapter` slot: when it is filled, the
kernel that the layer uses is `adapter(kernel)`.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# None: choose by backend. Ahead-of-time compilation for another device sets it explicitly.
_CONV_FORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("conv_form", default=None)


@contextlib.contextmanager
def conv_form(form: str) -> Iterator[None]:
    """Trace 3-D convolutions as "conv3d" or as "shifts" (a sum of 2-D ones) within this block.

    The default is "shifts" on the CPU, where it is about twice as fast, and "conv3d" elsewhere.
    """
    if form not in ("conv3d", "shifts"):
        raise ValueError(f'conv form {form!r}: expected "conv3d" or "shifts"')
    token = _CONV_FORM.set(form)
    try:
        yield
    finally:
        _CONV_FORM.reset(token)


def _form() -> str:
    return _CONV_FORM.get() or ("shifts" if jax.default_backend() == "cpu" else "conv3d")


class Conv(nnx.Module):
    """Parameters of a convolution whose kernel has axes (*window, in, out)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        window: tuple[int, ...],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        shape = (*window, in_features, out_features)
        self.kernel = nnx.Param(init(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype))
        self.adapter: nnx.Module | None = nnx.data(None)
        self.dtype = dtype

    def weights(self) -> tuple[Array, Array]:
        """The kernel in use (adapted, when there is an adapter) and the bias, in compute dtype."""
        kernel = self.kernel[...]
        if self.adapter is not None:
            kernel = self.adapter(kernel)
        return kernel.astype(self.dtype), self.bias[...].astype(self.dtype)


class CausalConv3d(Conv):
    """Convolution over (t, h, w) that sees no later frame; zero padding, same size out."""

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        """Convolve with kt-1 zero frames before the clip and half a window around each side."""
        kernel, bias = self.weights()
        return causal_conv(x.astype(self.dtype), kernel) + bias


class Conv2d(Conv):
    """Per-frame convolution with explicit padding (before, after) and stride on both sides."""

    def __call__(
        self, x: Float[Array, "b t h w c"], padding: tuple[int, int] = (0, 0), stride: int = 1
    ) -> Float[Array, "b t h2 w2 d"]:
        """Convolve each frame."""
        kernel, bias = self.weights()
        return conv_frames(x.astype(self.dtype), kernel, padding, stride) + bias


class TimeConv(Conv):
    """Convolution over time alone, without padding; kernel (kt, 1, 1, in, out)."""

    def __call__(self, x: Float[Array, "b t h w c"], stride: int = 1) -> Float[Array, "b t2 h w d"]:
        """Convolve `x`, which the caller has padded: t2 = (t - kt) // stride + 1."""
        kernel, bias = self.weights()
        taps = kernel.shape[0]
        frames = (x.shape[1] - taps) // stride + 1
        last = (frames - 1) * stride + 1
        # A sum of matrix products over the taps: the same on every backend, without a 3-D window.
        parts = [
            x[:, k : k + last : stride].astype(self.dtype) @ kernel[k, 0, 0] for k in range(taps)
        ]
        return sum(parts[1:], parts[0]) + bias


def conv_frames(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kh kw c d"],
    padding: tuple[int, int],
    stride: int = 1,
) -> Float[Array, "b t h2 w2 d"]:
    """A 2-D convolution of every frame, (b, t) folded into one batch."""
    b, t = x.shape[:2]
    flat = x.reshape(b * t, *x.shape[2:])
    y = lax.conv_general_dilated(
        flat,
        kernel,
        (stride, stride),
        (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(b, t, *y.shape[1:])


def causal_conv(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c d"]
) -> Float[Array, "b t h w d"]:
    """Causal convolution with zero padding, in the form that suits the backend."""
    kt, kh, kw = kernel.shape[:3]
    if (kt, kh, kw) == (1, 1, 1):
        return x @ kernel[0, 0, 0]
    if _form() == "shifts":
        return _shifted_sum(x, kernel)
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1, 1),
        ((kt - 1, 0), (kh // 2, kh // 2), (kw // 2, kw // 2)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )


def _shifted_sum(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c d"]
) -> Float[Array, "b t h w d"]:
    """One 2-D convolution per time tap; taps that only see the zero padding are left out."""
    kt, kh = kernel.shape[:2]
    t, pad = x.shape[1], (kh // 2, kh // 2)
    total = conv_frames(x, kernel[kt - 1], pad)
    for shift in range(1, min(kt, t)):
        part = conv_frames(x[:, : t - shift], kernel[kt - 1 - shift], pad)
        total = total + jnp.pad(part, ((0, 0), (shift, 0), (0, 0), (0, 0), (0, 0)))
    return total


class ChannelNorm(nnx.Module):
    """x / ||x||_2 * sqrt(C) * gamma over the channels, in float32; no bias.

    The reference divides by max(||x||, 1e-12). Written with the squared norm, the gradient at a
    zero vector is finite, which sqrt's is not.
    """

    def __init__(self, features: int, *, param_dtype: DTypeLike = jnp.float32):
        self.gamma = nnx.Param(jnp.ones((features,), param_dtype))

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Normalised `x`, same dtype."""
        y = x.astype(jnp.float32)
        scale = lax.rsqrt(jnp.maximum(jnp.sum(y * y, axis=-1, keepdims=True), 1e-24))
        gamma = self.gamma[...].astype(jnp.float32)
        return (y * scale * (x.shape[-1] ** 0.5) * gamma).astype(x.dtype)


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

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        """The block's output; the shortcut reads the un-normalised input."""
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = self.conv1(jax.nn.silu(self.norm1(x)))
        x = self.conv2(jax.nn.silu(self.norm2(x)))
        return x + shortcut


class AttentionBlock(nnx.Module):
    """Single-head self-attention over the positions of each frame, with a residual."""

    def __init__(self, features: int, **settings):
        norm = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        self.norm = ChannelNorm(features, **norm)
        self.to_qkv = Conv2d(features, 3 * features, (1, 1), **settings)
        self.proj = Conv2d(features, features, (1, 1), **settings)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Attend within each frame."""
        b, t, h, w, c = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(b * t, h * w, 3, 1, c)
        y = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        return x + self.proj(y.reshape(b, t, h, w, c))


class MidBlock(nnx.Module):
    """Residual block, attention, residual block at the latent resolution."""

    def __init__(self, features: int, **settings):
        self.resnets = nnx.List([ResidualBlock(features, features, **settings) for _ in range(2)])
        self.attentions = nnx.List([AttentionBlock(features, **settings)])

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))
