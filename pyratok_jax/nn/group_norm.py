"""Group normalisation (arXiv 1803.08494) of videos, over a whole clip or over each frame."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.nn import trace
from pyratok_jax.nn.halo import height_axis


class GroupNorm(nnx.Module):
    """Zero mean and unit variance within groups of consecutive channels, then scale and bias.

    Statistics are in float32 (float64 for float64), over all positions of the frames that are
    passed in, or over each frame's; also where frames are cut into strips or their height is
    sharded over devices.
    """

    def __init__(
        self,
        features: int,
        groups: int = 32,
        *,
        epsilon: float = 1e-6,
        per_frame: bool = False,
        param_dtype: DTypeLike = jnp.float32,
    ):
        """Build with unit scale and zero bias.

        Raises:
            ValueError: groups that do not divide the channels.
        """
        if features % groups:
            raise ValueError(f"{features} channels do not divide into {groups} groups")
        self.scale = nnx.Param(jnp.ones((features,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), param_dtype))
        self.groups, self.epsilon, self.per_frame = groups, epsilon, per_frame

    def __call__(
        self, x: Float[Array, "b t h w c"], *, activate: bool = False
    ) -> Float[Array, "b t h w c"]:
        """Normalised `x`, same dtype; SiLU of that where `activate`."""
        mean_of = self._mean(x.shape)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = x.astype(wide)
        # Two passes: E[x^2] - E[x]^2 cancels where the mean is large beside the spread.
        y = y - mean_of(y)
        y = y * lax.rsqrt(mean_of(y * y) + self.epsilon)
        y = y * self.scale[...].astype(wide) + self.bias[...].astype(wide)
        y = y.astype(x.dtype)
        return jax.nn.silu(y) if activate else y

    def _mean(self, shape: tuple[int, ...]) -> Callable[[Array], Array]:
        """Mean over each group's channels and positions, broadcastable to an array of `shape`."""
        axes = (2, 3) if self.per_frame else (1, 2, 3)
        features = shape[-1]
        width = features // self.groups
        axis, strips = height_axis(), trace.current().strips

        def mean(y: Array) -> Array:
            # By channel first: reshaping activations to groups would break a TPU's lanes.
            total = jnp.sum(y, axis=axes, keepdims=True)
            count = y.size // total.size * width * strips
            if strips > 1:
                total = total.reshape(-1, strips, *total.shape[1:]).sum(axis=1)
            if axis is not None:
                total, count = lax.psum(total, axis), count * lax.axis_size(axis)
            group = total.reshape(*total.shape[:-1], self.groups, width).sum(axis=-1) / count
            by_channel = jnp.repeat(group, width, axis=-1)
            return jnp.repeat(by_channel, strips, axis=0) if strips > 1 else by_channel

        return mean
