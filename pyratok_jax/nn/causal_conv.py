"""Causal convolutions over (batch, time, height, width, channels), with stream caches and halos.

The past before the clip is zeros (`CausalConv3d`) or copies of the first frame of the input
(`FirstFrameConv3d`).
"""

from typing import Any, Literal, Required, TypedDict

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.nn import trace
from pyratok_jax.nn.custom_vjps import causal
from pyratok_jax.nn.fast_convs import (
    FEW,
    TAPS,
    FrameConv,
    conv_in_blocks,
    upsampled_conv,
    upsampled_conv_by_phases,
    winograd_over_time,
)
from pyratok_jax.nn.halo import with_edge_halo, with_halo
from pyratok_jax.nn.lowering import conv3d, current_lowering, padded_width
from pyratok_jax.nn.stream_cache import StreamCache

# Checkpoint name of the activations that the remat policy "convs" saves.
KEPT = "kept"


class LayerSettings(TypedDict, total=False):
    """Keyword arguments of every layer with weights.

    Attributes:
        rngs: for the parameters.
        dtype: of activations, float32 by default; norms are always computed in float32.
        param_dtype: of the stored weights, float32 by default.
    """

    rngs: Required[nnx.Rngs]
    dtype: DTypeLike
    param_dtype: DTypeLike


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
        use_bias: bool = True,
    ):
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        shape = (*window, in_features, out_features)
        self.kernel = nnx.Param(init(rngs.params(), shape, param_dtype))
        self.bias: Any = (
            nnx.Param(jnp.zeros((out_features,), param_dtype)) if use_bias else nnx.data(None)
        )
        self.adapter: nnx.Module | None = nnx.data(None)
        self.dtype = dtype

    def weights(self, inputs: int | None = None, *, pad: bool = True) -> tuple[Array, Array]:
        """The kernel in use (adapted, when there is an adapter) and the bias, in compute dtype.

        Args:
            inputs: channels of the layer's input, which may be padded with zeros.
            pad: whether the output channels may be padded too (`lowering.padded_lanes`).
        """
        kernel = self.kernel[...]
        bias = jnp.zeros(kernel.shape[-1:]) if self.bias is None else self.bias[...]
        if self.adapter is not None:
            kernel = self.adapter(kernel)
        outputs = kernel.shape[-1]
        more_in = (inputs or kernel.shape[-2]) - kernel.shape[-2]
        more_out = padded_width(outputs) - outputs if pad else 0
        if more_in or more_out:
            window = ((0, 0),) * (kernel.ndim - 2)
            kernel = jnp.pad(kernel, (*window, (0, more_in), (0, more_out)))
            bias = jnp.pad(bias, (0, more_out))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class CausalConv3d(Conv):
    """Causal convolution over (t, h, w): reads no later frame; zero padding, same size out."""

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w d"]:
        """Convolve with kt-1 frames before the clip, zero or cached, and zero padding in space."""
        kernel, bias = self.weights(x.shape[-1])
        x = x.astype(self.dtype)
        if cache is not None and kernel.shape[0] > 1:
            return (
                causal_conv(cache.join(self, x, kernel.shape[0] - 1), kernel, has_past=True) + bias
            )
        return causal_conv(x, kernel) + bias


class Conv2d(Conv):
    """Per-frame convolution with explicit padding (before, after) and stride on both sides."""

    def __call__(
        self, x: Float[Array, "b t h w c"], padding: tuple[int, int] = (0, 0), stride: int = 1
    ) -> Float[Array, "b t h2 w2 d"]:
        """Convolve each frame."""
        kernel, bias = self.weights(x.shape[-1])
        return conv_frames(x.astype(self.dtype), kernel, padding, stride) + bias

    def after_upsampling(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 d"]:
        """Upsample each frame by 2 (nearest neighbour), then convolve with padding 1."""
        if current_lowering() == "conv3d":
            return self(jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3), padding=(1, 1))
        kernel, bias = self.weights(x.shape[-1])
        x = x.astype(self.dtype)
        if current_lowering() == "tpu":
            return upsampled_conv(x, kernel) + bias
        return upsampled_conv_by_phases(x, kernel, _of_frames) + bias


class TimeConv(Conv):
    """Convolution over time alone, without padding; kernel (kt, 1, 1, in, out)."""

    def __call__(
        self, x: Float[Array, "b t h w c"], stride: int = 1, *, pad: bool = True
    ) -> Float[Array, "b t2 h w d"]:
        """Convolve `x`, which the caller has padded: t2 = (t - kt) // stride + 1."""
        kernel, bias = self.weights(x.shape[-1], pad=pad)
        x = x.astype(self.dtype)
        if current_lowering() == "tpu":
            return conv3d(x, kernel, strides=(stride, 1, 1)) + bias
        # Matrix products of frames, without a 3-D window.
        return _over_time(x, kernel, lambda frames, taps: frames @ taps[0, 0], stride) + bias


def conv_frames(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kh kw c d"],
    padding: tuple[int, int],
    stride: int = 1,
) -> Float[Array, "b t h2 w2 d"]:
    """A 2-D convolution of every frame."""
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return pointwise(x, kernel[0, 0])
    x, rows = with_halo(x, padding)
    if current_lowering() == "tpu":
        return conv3d(x, kernel[None], ((0, 0), rows, padding), (1, stride, stride))
    return _of_frames(x, kernel, (rows, padding), stride)


def pointwise(
    x: Float[Array, "b t h w c"], matrix: Float[Array, "c d"]
) -> Float[Array, "b t h w d"]:
    """The same linear map at every position."""
    # On TPUs a matrix product would be given another memory layout than its neighbours.
    return conv3d(x, matrix[None, None, None]) if current_lowering() == "tpu" else x @ matrix


def _of_frames(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kh kw c d"],
    padding: tuple[tuple[int, int], tuple[int, int]],
    stride: int = 1,
) -> Float[Array, "b t h2 w2 d"]:
    """One 2-D convolution of all frames."""
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]), kernel, (stride, stride), padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return y.reshape(*x.shape[:2], *y.shape[1:])


def causal_conv(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c d"], *, has_past: bool = False
) -> Float[Array, "b t2 h w d"]:
    """Causal convolution with zero padding, in the lowering in force.

    Args:
        x: the clip; t2 = t.
        kernel: weights.
        has_past: the first kt-1 frames of `x` are earlier ones that no output is asked for, and
            time is not padded.
    """
    kt, kh, kw = kernel.shape[:3]
    if (kt, kh, kw) == (1, 1, 1):
        return pointwise(x, kernel[0, 0, 0])
    if current_lowering() == "tpu" and not has_past and kh % 2 and kw % 2:
        return causal(x, kernel, trace.current())
    x, rows = with_halo(x, (kh // 2, kh // 2))
    sides = (rows, (kw // 2, kw // 2))
    if current_lowering() == "frames":
        return _by_frames(x, kernel, sides, has_past)
    padding = ((0 if has_past else kt - 1, 0), *sides)
    if current_lowering() == "tpu" and kernel.shape[-1] <= FEW:
        return conv_in_blocks(x, kernel, padding)
    return conv3d(x, kernel, padding)


def _by_frames(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    sides: tuple[tuple[int, int], tuple[int, int]],
    has_past: bool,
) -> Float[Array, "b t2 h2 w2 d"]:
    """`causal_conv` as 2-D convolutions of frames; frame 0 takes one, its past is zero."""

    def convolve(frames: Array, taps: Array) -> Array:
        return _of_frames(frames, taps, sides)

    past, after = kernel.shape[0] - 1, ((0, 0),) * 3
    if has_past or not past:
        return _over_time(x, kernel, convolve)
    first = convolve(x[:, :1], kernel[past])
    if x.shape[1] == 1:
        return first
    padded = jnp.pad(x, ((0, 0), (past - 1, 0), *after))
    return jnp.concatenate([first, _over_time(padded, kernel, convolve)], axis=1)


def _over_time(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    convolve: FrameConv,
    stride: int = 1,
) -> Float[Array, "b t2 h2 w2 d"]:
    """A convolution over time without padding, t2 = (t - kt) // stride + 1.

    Args:
        x: the clip.
        kernel: weights.
        convolve: its part in space, of frames with one tap.
        stride: in time.
    """
    kt = kernel.shape[0]
    if kt == TAPS and stride == 1 and x.dtype == jnp.float32:
        return winograd_over_time(x, kernel, convolve)
    last = (x.shape[1] - kt) // stride * stride + 1
    parts = [convolve(x[:, k : k + last : stride], kernel[k]) for k in range(kt)]
    return sum(parts[1:], parts[0])


Edges = Literal["zero", "replicate"]


class FirstFrameConv3d(Conv):
    """Causal convolution over (t, h, w), maybe with strides.

    the input is preceded by kt-1 copies of its first frame. Frames are padded by (k-1) // 2 on
    every side, with zeros or with copies of the edge.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        window: tuple[int, int, int] = (3, 3, 3),
        *,
        edges: Edges = "zero",
        strides: tuple[int, int, int] = (1, 1, 1),
        **settings,
    ):
        super().__init__(in_features, out_features, window, **settings)
        if window[1] != window[2] or strides[1] != strides[2]:
            raise ValueError(f"a window of {window} with strides {strides} is not square in space")
        self.edges: Edges = edges
        self.strides = strides

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """Convolve; with a cache, one chunk of a clip (only where time is not strided).

        t2 = (t - 1) // stride + 1.
        """
        kernel, bias = self.weights(x.shape[-1])
        x = x.astype(self.dtype)
        past = kernel.shape[0] - 1
        if past and cache is not None:
            x = cache.join(self, x, past, x[:, :1])
        elif past:
            x = jnp.concatenate([jnp.repeat(x[:, :1], past, axis=1), x], axis=1)
        return conv_valid_in_time(x, kernel, self.edges, self.strides) + bias


def conv_valid_in_time(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    edges: Edges = "zero",
    strides: tuple[int, int, int] = (1, 1, 1),
) -> Float[Array, "b t2 h2 w2 d"]:
    """A convolution without padding in time, frames padded by (k-1) // 2, in the lowering in force.

    t2 = (t - kt) // stride + 1.
    """
    rows = (kernel.shape[1] - 1) // 2
    if kernel.shape[:3] == (1, 1, 1) and strides == (1, 1, 1):
        return pointwise(x, kernel[0, 0, 0])
    around = (rows, rows)
    sides = ((0, 0), (0, 0))
    if rows and edges == "replicate":
        x = jnp.pad(with_edge_halo(x, rows), ((0, 0),) * 3 + (around, (0, 0)), mode="edge")
    elif rows:
        x, above_below = with_halo(x, around)
        sides = (above_below, around)
    if current_lowering() != "frames":
        return conv3d(x, kernel, ((0, 0), *sides), strides)
    x = jnp.pad(x, ((0, 0), (0, 0), *sides, (0, 0)))
    return _over_time(
        x,
        kernel,
        lambda frames, taps: conv_frames(frames, taps, (0, 0), strides[1]),
        strides[0],
    )
