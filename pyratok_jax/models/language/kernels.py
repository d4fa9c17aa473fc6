"""Quantised kernels: int8 and int4 values with a scale per group of inputs and output.

A kernel (in, out) is cut into groups of inputs. int8 is symmetric: every group and output has one
scale, the largest magnitude over 127. int4 has an offset too, so that its 16 values span exactly
what the group holds: the few that there are must not be spent on one side. Two share a byte.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8, UInt8

GROUPS = {8: 0, 4: 32}


class QuantizedKernel(NamedTuple):
    """A quantised kernel (*n, i, o).

    Attributes:
        values: int8, or pairs of int4 in a byte (neighbouring inputs, the first one low).
        scale: per group and output; float32, or float16 for int4.
        offset: the smallest value of each group (int4), float16; None for int8.
    """

    values: Int8[Array, "*n i o"] | UInt8[Array, "*n half o"]
    scale: Float[Array, "*n groups o"]
    offset: Float[Array, "*n groups o"] | None


def quantize_kernel(kernel: Float[Array, "*n i o"], bits: int, group: int) -> QuantizedKernel:
    """Quantise one kernel.

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
    if bits == 8:
        scale = jnp.max(jnp.abs(parts), axis=-2) / 127
        values = jnp.round(parts / jnp.where(scale == 0, 1.0, scale)[..., None, :])
        values = jnp.clip(values, -127, 127).astype(jnp.int8)
        return QuantizedKernel(values.reshape(kernel.shape), scale, None)
    # The scale is rounded before the values are quantised with it, so that they absorb its error.
    offset = jnp.min(parts, axis=-2).astype(jnp.float16)
    low = offset.astype(jnp.float32)
    scale = ((jnp.max(parts, axis=-2) - low) / 15).astype(jnp.float16)
    step = scale.astype(jnp.float32)
    values = (parts - low[..., None, :]) / jnp.where(step == 0, 1.0, step)[..., None, :]
    values = jnp.clip(jnp.round(values), 0, 15).astype(jnp.uint8)
    return QuantizedKernel(_pack(values.reshape(kernel.shape)), scale, offset)


def _pack(nibbles: UInt8[Array, "*n i o"]) -> UInt8[Array, "*n half o"]:
    return nibbles[..., 0::2, :] | (nibbles[..., 1::2, :] << 4)


def dequantize_kernel(
    kernel: QuantizedKernel, dtype: DTypeLike = jnp.float32
) -> Float[Array, "*n i2 o"]:
    """The dequantised kernel."""
    values, scale, offset = kernel
    *lead, rows, outputs = values.shape
    if offset is not None:
        pair = jnp.stack([values & 15, values >> 4], axis=-2)
        rows, values = 2 * rows, pair.reshape(*lead, 2 * rows, outputs)
    groups = scale.shape[-2]
    parts = values.reshape(*lead, groups, rows // groups, outputs).astype(dtype)
    parts = parts * scale[..., None, :].astype(dtype)
    if offset is not None:
        parts = parts + offset[..., None, :].astype(dtype)
    return parts.reshape(*lead, rows, outputs)
