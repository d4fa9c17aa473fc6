"""Between the latent and the feature space in which it is quantised."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.nn.causal_conv import CausalConv3d
from pyratok_jax.nn.grids import depth_to_space, space_to_depth
from pyratok_jax.nn.partitioning import convolve


class LatentProjection(nnx.Module):
    """A linear map of patches of r x r latent positions, and its counterpart with smoothing.

    The way back ends, as LaPQ's synthesis does, in a residual causal convolution that starts at
    zero, so that quantisers are compared with like decoders.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        width: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.patch = patch
        size = patch**2 * channels
        self.enter = nnx.Linear(size, width, rngs=rngs)
        self.leave = nnx.Linear(width, size, rngs=rngs, dtype=dtype)
        self.smooth_in = CausalConv3d(channels, hidden, (3, 3, 3), rngs=rngs, dtype=dtype)
        self.smooth_out = CausalConv3d(hidden, channels, (3, 3, 3), rngs=rngs, dtype=dtype)
        self.smooth_out.kernel[...] = jnp.zeros_like(self.smooth_out.kernel[...])

    def features(self, latent: Float[Array, "b t H W z"]) -> Float[Array, "b t h w d"]:
        """What is quantised, float32."""
        return self.enter(space_to_depth(latent.astype(jnp.float32), self.patch))

    def latent(self, features: Float[Array, "b t h w d"]) -> Float[Array, "b t H W z"]:
        """Latent of (quantised) features."""
        x = depth_to_space(self.leave(features), self.patch)
        return x + convolve(self.smooth_out, jax.nn.silu(convolve(self.smooth_in, x)))
