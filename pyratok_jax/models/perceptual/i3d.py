"""I3D (arXiv 1705.07750): Inception-v1 inflated to three dimensions, for Kinetics-400.

Its 400 logits are the features of the Frechet video distance. Only inference is here: the batch
normalisation uses the statistics that come with the weights, and there is no dropout.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

CLASSES = 400
SIDE = 224
FEWEST_FRAMES = 9  # The last pooling needs two frames after three halvings.
_EPSILON = 1e-3


class PoolSpec(NamedTuple):
    """A max-pool over (time, height, width); input and window are padded as TensorFlow does."""

    window: tuple[int, int, int]
    strides: tuple[int, int, int]


class MixedSpec(NamedTuple):
    """An Inception block: output channels of its six convolutions.

    Attributes:
        point: the first branch, 1x1x1.
        reduce: the second branch's 1x1x1 before its 3x3x3.
        wide: that 3x3x3.
        reduce2: the third branch's 1x1x1.
        wide2: its 3x3x3.
        pooled: 1x1x1 after a max-pool.
    """

    point: int
    reduce: int
    wide: int
    reduce2: int
    wide2: int
    pooled: int


_SPATIAL = PoolSpec((1, 3, 3), (1, 2, 2))
# What follows the stem, by the names that published checkpoints use for the blocks.
LAYERS: dict[str, PoolSpec | MixedSpec] = {
    "Mixed_3b": MixedSpec(64, 96, 128, 16, 32, 32),
    "Mixed_3c": MixedSpec(128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": PoolSpec((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": MixedSpec(192, 96, 208, 16, 48, 64),
    "Mixed_4c": MixedSpec(160, 112, 224, 24, 64, 64),
    "Mixed_4d": MixedSpec(128, 128, 256, 24, 64, 64),
    "Mixed_4e": MixedSpec(112, 144, 288, 32, 64, 64),
    "Mixed_4f": MixedSpec(256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": PoolSpec((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": MixedSpec(256, 160, 320, 32, 128, 128),
    "Mixed_5c": MixedSpec(384, 192, 384, 48, 128, 128),
}
BLOCKS = tuple(name for name, spec in LAYERS.items() if isinstance(spec, MixedSpec))


class Unit(nnx.Module):
    """Convolution without bias, batch normalisation without scale, rectifier."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        strides: int = 1,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        size, step = (kernel,) * 3, (strides,) * 3
        self.conv = nnx.Conv(
            inputs, outputs, size, step, padding="SAME", use_bias=False, rngs=rngs, dtype=dtype
        )
        self.mean = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.variance = nnx.Param(jnp.ones((outputs,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: Float[Array, "n t h w c"]) -> Float[Array, "n t2 h2 w2 c2"]:
        """The unit's output, never negative."""
        scale = jax.lax.rsqrt(self.variance[...] + _EPSILON)
        shift = self.bias[...] - self.mean[...] * scale
        y = self.conv(x)
        return jax.nn.relu(y * scale.astype(y.dtype) + shift.astype(y.dtype))


class Mixed(nnx.Module):
    """Four branches side by side, concatenated over channels."""

    def __init__(self, inputs: int, spec: MixedSpec, *, rngs: nnx.Rngs, dtype: DTypeLike):
        def unit(from_channels: int, to_channels: int, kernel: int) -> Unit:
            return Unit(from_channels, to_channels, kernel, rngs=rngs, dtype=dtype)

        self.point = unit(inputs, spec.point, 1)
        self.reduce = unit(inputs, spec.reduce, 1)
        self.wide = unit(spec.reduce, spec.wide, 3)
        self.reduce2 = unit(inputs, spec.reduce2, 1)
        self.wide2 = unit(spec.reduce2, spec.wide2, 3)
        self.pooled = unit(inputs, spec.pooled, 1)

    def __call__(self, x: Float[Array, "n t h w c"]) -> Float[Array, "n t h w c2"]:
        """The block's output at the input's size."""
        pooled = _max_pool(x, PoolSpec((3, 3, 3), (1, 1, 1)))
        branches = (
            self.point(x),
            self.wide(self.reduce(x)),
            self.wide2(self.reduce2(x)),
            self.pooled(pooled),
        )
        return jnp.concatenate(branches, axis=-1)


class I3D(nnx.Module):
    """The network with its classifier."""

    def __init__(self, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """Build with random weights; `weights_conversion.i3d` has the published ones.

        Args:
            rngs: for the parameters.
            dtype: of the activations.
        """
        self.stem = Unit(3, 64, 7, strides=2, rngs=rngs, dtype=dtype)
        self.stem2 = Unit(64, 64, 1, rngs=rngs, dtype=dtype)
        self.stem3 = Unit(64, 192, 3, rngs=rngs, dtype=dtype)
        self.blocks: nnx.List = nnx.List([])
        channels = 192
        for spec in LAYERS.values():
            if isinstance(spec, MixedSpec):
                self.blocks.append(Mixed(channels, spec, rngs=rngs, dtype=dtype))
                channels = spec.point + spec.wide + spec.wide2 + spec.pooled
        self.logits = nnx.Linear(channels, CLASSES, rngs=rngs, dtype=dtype)

    def features(self, videos: Float[Array, "n t h w 3"]) -> Float[Array, "n t2 h2 w2 1024"]:
        """The last feature map, 8 times shorter and 32 times smaller than videos in [-1, 1]."""
        x = _max_pool(self.stem(videos), _SPATIAL)
        x = _max_pool(self.stem3(self.stem2(x)), _SPATIAL)
        blocks = iter(self.blocks)
        for spec in LAYERS.values():
            x = next(blocks)(x) if isinstance(spec, MixedSpec) else _max_pool(x, spec)
        return x

    def __call__(self, videos: Float[Array, "n t h w 3"]) -> Float[Array, "n 400"]:
        """Logits, float32, of videos in [-1, 1].

        Raises:
            ValueError: another size, or too few frames.
        """
        if videos.shape[2:4] != (SIDE, SIDE) or videos.shape[1] < FEWEST_FRAMES:
            raise ValueError(
                f"I3D takes {SIDE}x{SIDE} pixels and at least {FEWEST_FRAMES} frames, "
                f"not {videos.shape}"
            )
        x = self.features(videos).mean(axis=(2, 3))
        # Windows of two frames, each classified, then averaged: the classifier is linear, so the
        # averages may be taken first.
        x = 0.5 * (x[:, :-1] + x[:, 1:]).mean(axis=1)
        return self.logits(x).astype(jnp.float32)


def _max_pool(x: Float[Array, "n t h w c"], spec: PoolSpec) -> Float[Array, "n t2 h2 w2 c"]:
    return nnx.max_pool(x, spec.window, strides=spec.strides, padding="SAME")
