"""LPIPS (arXiv 1801.03924): distance of two images in the features of a frozen classifier.

For each of five feature maps: f / ||f||, squared difference, a learned non-negative weight per
channel, mean over positions; the five values are added. Trunks: VGG16 and AlexNet.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# The scaling that the learned weights were fitted with; inputs are in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
_TINY = 1e-10


class ConvSpec(NamedTuple):
    """One convolution of a trunk, what comes before it, and whether its output is compared.

    Attributes:
        channels: output channels.
        kernel: side of the window.
        stride: step in both directions.
        padding: zeros on every side.
        pool: window of the max-pool of stride 2 in front of it; 0 for none.
        tap: whether the rectified output is one of the five features.
    """

    channels: int
    kernel: int
    stride: int
    padding: int
    pool: int
    tap: bool


def _vgg16() -> tuple[ConvSpec, ...]:
    specs = []
    for stage, (channels, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        for i in range(count):
            pool = 2 if stage and i == 0 else 0
            specs.append(ConvSpec(channels, 3, 1, 1, pool, i == count - 1))
    return tuple(specs)


TRUNKS: dict[str, tuple[ConvSpec, ...]] = {
    "vgg": _vgg16(),
    "alex": (
        ConvSpec(64, 11, 4, 2, 0, True),
        ConvSpec(192, 5, 1, 2, 3, True),
        ConvSpec(384, 3, 1, 1, 3, True),
        ConvSpec(256, 3, 1, 1, 0, True),
        ConvSpec(256, 3, 1, 1, 0, True),
    ),
}
# Below these sides the deepest feature map would be empty.
SMALLEST_SIDE = {"vgg": 16, "alex": 31}


class LPIPS(nnx.Module):
    """A trunk and the weights per channel. Frozen: losses differentiate through it, not into it."""

    def __init__(self, net: str = "vgg", *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """Build with random weights; `weights_conversion.lpips` has the published ones.

        Args:
            net: "vgg" or "alex".
            rngs: for the parameters.
            dtype: of the trunk's activations; distances are always computed in float32.

        Raises:
            ValueError: for another trunk.
        """
        if net not in TRUNKS:
            raise ValueError(f"LPIPS trunk {net!r} is not one of {', '.join(TRUNKS)}")
        self.net = net
        self.convs: nnx.List = nnx.List([])
        self.weights: nnx.List = nnx.List([])
        channels = 3
        for spec in TRUNKS[net]:
            self.convs.append(
                nnx.Conv(
                    channels,
                    spec.channels,
                    (spec.kernel, spec.kernel),
                    strides=spec.stride,
                    padding=spec.padding,
                    rngs=rngs,
                    dtype=dtype,
                )
            )
            channels = spec.channels
            if spec.tap:
                self.weights.append(nnx.Param(jax.random.uniform(rngs.params(), (channels,))))

    def features(self, images: Float[Array, "n h w 3"]) -> list[Array]:
        """The five rectified feature maps of images in [-1, 1], fine to coarse.

        Raises:
            ValueError: when a side is too small for the deepest map.
        """
        if min(images.shape[1:3]) < SMALLEST_SIDE[self.net]:
            raise ValueError(
                f"LPIPS ({self.net}) needs sides of at least {SMALLEST_SIDE[self.net]} pixels, "
                f"not {images.shape[1]}x{images.shape[2]}"
            )
        x = (images - jnp.asarray(SHIFT, images.dtype)) / jnp.asarray(SCALE, images.dtype)
        taps = []
        for spec, conv in zip(TRUNKS[self.net], self.convs, strict=True):
            if spec.pool:
                x = _max_pool(x, spec.pool)
            x = jax.nn.relu(conv(x))
            if spec.tap:
                taps.append(x)
        return taps

    def __call__(self, a: Float[Array, "n h w 3"], b: Float[Array, "n h w 3"]) -> Float[Array, "n"]:
        """Distance of each pair of images in [-1, 1]; 0 for equal images."""
        total = jnp.zeros(a.shape[0], jnp.float32)
        for x, y, weight in zip(self.features(a), self.features(b), self.weights, strict=True):
            difference = _unit(x.astype(jnp.float32)) - _unit(y.astype(jnp.float32))
            total = total + jnp.mean(difference**2 @ weight[...].astype(jnp.float32), axis=(1, 2))
        return total


def _unit(f: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """f / (||f|| + tiny); a vector of zeros stays zero and has a finite gradient."""
    norm = jnp.sqrt(jnp.maximum(jnp.sum(f * f, axis=-1, keepdims=True), _TINY**2))
    return f / (norm + _TINY)


def _max_pool(x: Float[Array, "n h w c"], window: int) -> Float[Array, "n i j c"]:
    """Max-pool of stride 2, no padding; rows and columns that fill no window are left out."""
    if window != 2:
        return nnx.max_pool(x, (window, window), strides=(2, 2))
    n, h, w, c = x.shape
    # As a reshape its gradient is a comparison, much faster than the scatter of a windowed maximum.
    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return jnp.max(x, axis=(2, 4))
