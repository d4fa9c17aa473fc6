"""Lowerings of convolutions: the same values, computed in the way that suits a backend."""

import contextlib

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from pyratok_jax.nn import trace
from pyratok_jax.nn.trace import LOWERINGS

LANES = 128  # lanes of a TPU vector register
IMAGES = 8  # its sublanes, and how many images a TPU convolution works on at a time


def conv_lowering(lowering: str) -> contextlib.AbstractContextManager[None]:
    """Trace 3-D convolutions with the given lowering within this block.

    "frames" is 2-D convolutions of frames, in float32 by Winograd's filtering over time
    (`fast_convs`); "conv3d" is one operation; "tpu" the same over frames cut into strips
    (`halo.cut`), with narrow stages of the VAE zero-padded to whole registers and sums over
    channels as matrix products. The default is "frames" on the CPU, where it is several times
    faster, "tpu" on TPUs, and "conv3d" elsewhere; ahead-of-time compilation for another device sets
    it explicitly. All lowerings compute the same function up to rounding.

    Raises:
        ValueError: unknown lowering.
    """
    if lowering not in LOWERINGS:
        raise ValueError(f"conv lowering {lowering!r}: expected one of {', '.join(LOWERINGS)}")
    return trace.override(lowering=lowering)


def current_lowering() -> str:
    """The lowering in force: the one set, or the backend's."""
    by_backend = {"cpu": "frames", "tpu": "tpu"}
    return trace.current().lowering or by_backend.get(jax.default_backend(), "conv3d")


def padded_lanes(allowed: bool = True) -> contextlib.AbstractContextManager[None]:
    """Within this block layers may pad their output channels with zeros to the lane width.

    Only on TPUs: 96 channels cost as much as 128 there, and moving them costs more. Use `trim`
    before a consumer from outside.
    """
    return trace.override(pad_lanes=allowed and current_lowering() == "tpu")


def padded_width(features: int) -> int:
    """Output channels of a layer with `features`: LANES if more than half of a register is used."""
    narrow = LANES // 2 < features < LANES
    return LANES if narrow and trace.current().pad_lanes else features


def trim(x: Float[Array, "*n c"], features: int) -> Float[Array, "*n d"]:
    """`x` without the zero channels that pad it."""
    return x[..., :features]


def conv3d(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    padding: tuple[tuple[int, int], ...] = ((0, 0),) * 3,
    strides: tuple[int, int, int] = (1, 1, 1),
    dtype=None,
) -> Float[Array, "b t2 h2 w2 d"]:
    """One convolution over (t, h, w); `dtype` of the result if not the input's."""
    y = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        preferred_element_type=dtype,
    )
    if current_lowering() != "tpu" or y.shape[0] % IMAGES or y.shape[-1] <= LANES // 2:
        return y
    # The layout that convolutions prefer; left alone, XLA converts back and forth between two.
    return with_layout_constraint(y, Layout((1, 2, 3, 0, 4)))


@jax.custom_vjp
def channel_sums(x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    """The sum over channels, broadcast to every channel: bfloat16 terms, float32 accumulation.

    A product with a matrix of ones on the MXU, which is idle here; the consumer then needs no
    second pass over memory.
    """
    features = x.shape[-1]
    ones = jnp.ones((1, 1, 1, features, features), jnp.bfloat16)
    return conv3d(x.astype(jnp.bfloat16), ones, dtype=jnp.float32)


# The matrix is symmetric: the VJP is the same sum.
channel_sums.defvjp(lambda x: (channel_sums(x), None), lambda _, g: (channel_sums(g),))
