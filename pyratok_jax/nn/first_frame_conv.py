"""Causal convolutions whose past, before the clip, is copies of the first frame of their input."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from pyratok_jax.nn.causal_conv import Conv, conv_frames, pointwise
from pyratok_jax.nn.halo import with_edge_halo, with_halo
from pyratok_jax.nn.lowering import conv3d, current_lowering
from pyratok_jax.nn.stream_cache import StreamCache

Edges = Literal["zero", "replicate"]


class FirstFrameConv3d(Conv):
    """Causal convolution over (t, h, w), maybe with strides.

    kt-1 copies of the first frame of the input stand before it. Frames are padded by (k-1) // 2 on
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
    kt, rows = kernel.shape[0], (kernel.shape[1] - 1) // 2
    if kernel.shape[:3] == (1, 1, 1) and strides == (1, 1, 1):
        return pointwise(x, kernel[0, 0, 0])
    around = (rows, rows)
    sides = ((0, 0), (0, 0))
    if rows and edges == "replicate":
        x = jnp.pad(with_edge_halo(x, rows), ((0, 0),) * 3 + (around, (0, 0)), mode="edge")
    elif rows:
        x, above_below = with_halo(x, around)
        sides = (above_below, around)
    if current_lowering() != "shifts":
        return conv3d(x, kernel, ((0, 0), *sides), strides)
    x = jnp.pad(x, ((0, 0), (0, 0), *sides, (0, 0)))
    last = (x.shape[1] - kt) // strides[0] * strides[0] + 1
    parts = [
        conv_frames(x[:, k : k + last : strides[0]], kernel[k], (0, 0), strides[1])
        for k in range(kt)
    ]
    return sum(parts[1:], parts[0])
