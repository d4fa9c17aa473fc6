"""From codes to latent and back: the linear paths between a level's grid and the latent grid.

`Synthesis` is U_l in the latent sum z_hat = sum_l U_l(q(l)); `Analysis` is its transpose in shape,
from the latent residual to logits on the level's grid. Both treat a patch of r x r latent positions
and the group of g token frames that share one latent frame as one vector, as a linear transform
codec does; frame 0, which is a latent frame by itself, has its own maps.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.nn.causal_conv import CausalConv3d, LayerSettings
from pyratok_jax.nn.grids import depth_to_space, space_to_depth
from pyratok_jax.nn.partitioning import convolve
from pyratok_jax.nn.settings import Stride
from pyratok_jax.nn.stream_cache import StreamCache


class Synthesis(nnx.Module):
    """U_l: codes (b, t, h, w, bits) of one level to latents (b, t', h', w', z), normalised.

    A linear map per patch, then a residual causal convolution whose last layer is initialised to
    zero; it learns to remove block artefacts at the edges of patches.

    Args:
        stride: the level's strides in pixels.
        latent_stride: the latent's strides (4, f).
        bits: bits per token.
        channels: latent channels z.
        hidden: width of the smoothing convolution.
    """

    def __init__(
        self,
        stride: Stride,
        latent_stride: Stride,
        bits: int,
        channels: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.group, self.patch = _ratios(stride, latent_stride)
        width = self.patch**2 * channels
        init = nnx.initializers.variance_scaling(0.1, "fan_in", "normal")
        settings: LayerSettings = {"rngs": rngs, "dtype": dtype}
        self.first = nnx.Linear(bits, width, kernel_init=init, **settings)
        self.rest = nnx.Linear(self.group * bits, width, kernel_init=init, **settings)
        self.smooth_in = CausalConv3d(channels, hidden, (3, 3, 3), **settings)
        self.smooth_out = CausalConv3d(hidden, channels, (3, 3, 3), **settings)
        self.smooth_out.kernel[...] = jnp.zeros_like(self.smooth_out.kernel[...])

    def grouped(self, q: Float[Array, "b t h w bits"]) -> Float[Array, "b n h w d"]:
        """Codes after frame 0 as the vectors that `rest` reads: d = group x bits."""
        b, t, h, w, bits = q.shape
        q = q.reshape(b, t // self.group, self.group, h, w, bits).transpose(0, 1, 3, 4, 2, 5)
        return q.reshape(b, -1, h, w, self.group * bits)

    def linear(
        self, q: Float[Array, "b t h w bits"], *, first: bool = True
    ) -> Float[Array, "b T H W z"]:
        """The linear part alone; `first` says whether `q` starts with frame 0."""
        latents = self.rest(self.grouped(q[:, int(first) :]))
        if first:
            latents = jnp.concatenate([self.first(q[:, :1]), latents], axis=1)
        return depth_to_space(latents, self.patch)

    def __call__(
        self, q: Float[Array, "b t h w bits"], cache: StreamCache | None = None
    ) -> Float[Array, "b T H W z"]:
        """Latent contribution of one level's codes; with a cache, of one chunk of them."""
        x = self.linear(q, first=cache is None or cache.first)
        hidden = jax.nn.silu(convolve(self.smooth_in, x, cache))
        return x + convolve(self.smooth_out, hidden, cache)


class Analysis(nnx.Module):
    """The reverse of `Synthesis`: latents (b, t', h', w', z) to logits (b, t, h, w, bits)."""

    def __init__(
        self, stride: Stride, latent_stride: Stride, bits: int, channels: int, *, rngs: nnx.Rngs
    ):
        self.group, self.patch = _ratios(stride, latent_stride)
        width = self.patch**2 * channels
        self.first = nnx.Linear(width, bits, rngs=rngs, dtype=jnp.float32)
        self.rest = nnx.Linear(width, self.group * bits, rngs=rngs, dtype=jnp.float32)

    def __call__(
        self, residual: Float[Array, "b T H W z"], *, first: bool = True
    ) -> Float[Array, "b t h w bits"]:
        """Logits of the latent residual, which starts with frame 0 if `first`."""
        patches = space_to_depth(residual, self.patch)
        rest = self.rest(patches[:, 1:] if first else patches)
        b, n, h, w, width = rest.shape
        bits = width // self.group
        rest = rest.reshape(b, n, h, w, self.group, bits).transpose(0, 1, 4, 2, 3, 5)
        rest = rest.reshape(b, n * self.group, h, w, bits)
        return jnp.concatenate([self.first(patches[:, :1]), rest], axis=1) if first else rest


def _ratios(stride: Stride, latent_stride: Stride) -> tuple[int, int]:
    """Token frames per latent frame, and latent positions per token along rows and columns."""
    return latent_stride[0] // stride[0], stride[1] // latent_stride[1]
