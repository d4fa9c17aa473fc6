"""Quantised kernels: int8 and int4 values with a scale per group of inputs and output.

A kernel (in, out) is cut into groups of inputs; every group and output has one scale, the largest
magnitude over 127 or 7. Two int4 values share a byte.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8, UInt8

GROUPS = {8: 0, 4: 32}


def quantize_kernel(
    kernel: Float[Array, "*n i o"], bits: int, group: int
) -> tuple[Int8[Array, "*n i o"] | UInt8[Array, "*n half o"], Float[Array, "*n groups o"]]:
    """Values and scales of one kernel.

    Args:
        kernel: any leading axes.
        bits: 8 or 4.
        group: inputs per scale; 0 takes them all.

    Raises:
        ValueError: when the inputs do not divide into groups, or into pairs for 4 bits.
    """
    *lead, inputs, outputs = kernel.shape
    group = group or inputs
    if bits not in GROUPS or inputs % group or (bits == 4 and inputs % 2):
        raise ValueError(f"{inputs} inputs do not suit {bits} bits in groups of {group}")
    parts = kernel.astype(jnp.float32).reshape(*lead, inputs // group, group, outputs)
    top = 2 ** (bits - 1) - 1
    scale = jnp.max(jnp.abs(parts), axis=-2) / top
    values = jnp.round(parts / jnp.where(scale == 0, 1.0, scale)[..., None, :])
    values = jnp.clip(values, -top, top).astype(jnp.int8).reshape(kernel.shape)
    return (values if bits == 8 else _pack(values)), scale


def _pack(values: Int8[Array, "*n i o"]) -> UInt8[Array, "*n half o"]:
    nibbles = (values + 8).astype(jnp.uint8)
    return nibbles[..., 0::2, :] | (nibbles[..., 1::2, :] << 4)


def dequantize_kernel(
    values: Int8[Array, "*n i o"] | UInt8[Array, "*n half o"],
    scale: Float[Array, "*n groups o"],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "*n i2 o"]:
    """The kernel that the quantised one stands for."""
    *lead, rows, outputs = values.shape
    if values.dtype == jnp.uint8:
        pair = jnp.stack([values & 15, values >> 4], axis=-2).astype(jnp.int8) - 8
        rows, values = 2 * rows, pair.reshape(*lead, 2 * rows, outputs)
    groups = scale.shape[-2]
    parts = values.reshape(*lead, groups, rows // groups, outputs).astype(dtype)
    return (parts * scale[..., None, :].astype(dtype)).reshape(*lead, rows, outputs)
