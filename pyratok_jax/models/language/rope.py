"""Rotary position embedding: wavelengths, angles, M-RoPE, and the positions of text and grids."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pyratok_jax.models.language.config import RopeConfig

# One row serves a batch whose rows have the same positions.
Rotation = tuple[Float[Array, "#b t half"], Float[Array, "#b t half"]]


def frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Angle per position of each of the head_dim / 2 pairs, float32."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    inverse = (1.0 / np.float32(rope.theta) ** exponent).astype(np.float32)
    if rope.kind == "linear":
        return inverse / np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3(inverse, rope)
    return inverse


def _llama3(inverse: np.ndarray, rope: RopeConfig) -> np.ndarray:
    """Llama 3: short wavelengths are kept, long ones divided by the factor, others blended."""
    wavelength = 2 * math.pi / inverse
    low = rope.original_length / rope.low_freq_factor
    high = rope.original_length / rope.high_freq_factor
    scaled = np.where(wavelength > low, inverse / rope.factor, inverse)
    smooth = (rope.original_length / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    mixed = (1 - smooth) * inverse / rope.factor + smooth * inverse
    between = (wavelength >= high) & (wavelength <= low)
    return np.where(between, mixed, scaled).astype(np.float32)


def rotation(
    positions: Int[Array, "b t"] | Int[Array, "3 b t"],
    inverse: np.ndarray,
    section: tuple[int, ...] = (),
) -> Rotation:
    """Cosine and sine (b, t, head_dim / 2) of every token's angles, float32.

    Args:
        positions: one row, or the time, row and column positions of M-RoPE.
        inverse: `frequencies` of the layer.
        section: angles per row of M-RoPE positions; needed when there are three rows.
    """
    if positions.ndim == 3 and section:
        row = np.repeat(np.arange(3), section)
        chosen = jnp.moveaxis(positions[row], 0, -1).astype(jnp.float32)
    elif positions.ndim == 3:
        raise ValueError("three rows of positions need a model with M-RoPE")
    else:
        chosen = positions[..., None].astype(jnp.float32)
    angles = chosen * inverse
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "b t n d"], turn: Rotation) -> Float[Array, "b t n d"]:
    """Rotate the pairs (i, i + d / 2) of every head, in float32."""
    cos, sin = (part[:, :, None] for part in turn)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def grid_positions(
    start: int, grid: tuple[int, int, int], time_step: float = 1.0
) -> Int[np.ndarray, "3 n"]:
    """M-RoPE positions of a (t, h, w) grid in raster order that begins at `start`.

    `time_step` is how far the time position moves per frame; fractions are rounded down.
    """
    t, h, w = grid
    time = np.floor(np.arange(t) * np.float32(time_step)).astype(np.int32)
    rows = np.meshgrid(time, np.arange(h), np.arange(w), indexing="ij")
    return np.stack(rows).reshape(3, -1).astype(np.int32) + start


def mixed_positions(
    parts: Sequence[int | tuple[int, int, int]], time_step: float = 1.0, start: int = 0
) -> Int[np.ndarray, "3 n"]:
    """M-RoPE positions of a sequence of texts (their length) and grids (t, h, w).

    Text advances all three rows by one per token; after a grid the next part starts at the grid's
    start plus its longer side, as in the published model.
    """
    rows = []
    for part in parts:
        if isinstance(part, tuple):
            rows.append(grid_positions(start, part, time_step))
            start += max(part[1], part[2])
        else:
            line = np.arange(part, dtype=np.int32) + start
            rows.append(np.broadcast_to(line, (3, part)))
            start += part
    return np.concatenate(rows, axis=1)
