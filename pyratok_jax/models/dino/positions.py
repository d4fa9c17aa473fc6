"""Positions of patches: rotary angles (DINOv3), learned grids resized bicubically (DINOv2)."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def rotary_angles(rows: int, columns: int, head_width: int, theta: float) -> np.ndarray:
    """(rows * columns, head_width) float32: angles of the patches' centres in [-1, 1].

    A quarter of the width each for y and x, the two together repeated once for the rotated half.
    """
    frequency = theta ** -np.arange(0, 1, 4 / head_width, dtype=np.float32)
    centres = [2 * (np.arange(n, dtype=np.float32) + 0.5) / n - 1 for n in (rows, columns)]
    y, x = np.meshgrid(*centres, indexing="ij")
    angles = 2 * np.pi * np.stack([y.ravel(), x.ravel()], axis=1)[..., None] * frequency
    return np.tile(angles.reshape(rows * columns, -1), 2).astype(np.float32)


def rotate(
    x: Float[Array, "n l heads d"], angles: Float[np.ndarray, "patches d"]
) -> Float[Array, "n l heads d"]:
    """Rotate the last `patches` tokens; class and register tokens before them stay."""
    prefix, patches = jnp.split(x, [x.shape[1] - len(angles)], axis=1)
    first, second = jnp.split(patches, 2, axis=-1)
    cos, sin = (f(angles)[:, None].astype(np.float32) for f in (np.cos, np.sin))
    turned = patches * cos + jnp.concatenate([-second, first], axis=-1) * sin
    return jnp.concatenate([prefix, turned.astype(x.dtype)], axis=1)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def bicubic_matrix(source: int, target: int, antialias: bool) -> np.ndarray:
    """(target, source) float32 weights of a bicubic resize of one axis, corners not aligned.

    The published models were resized in two ways: a sharp kernel (-0.75) whose taps beyond the edge
    repeat the border, and an antialiased one (-0.5) whose taps beyond the edge are left out.
    """
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale - 0.5
    if antialias:
        distance = np.arange(source)[None] - centres[:, None]
        weights = _cubic(distance / max(scale, 1.0), -0.5)
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights = np.zeros((target, source))
    for row, centre in enumerate(centres):
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[row, np.clip(tap, 0, source - 1)] += _cubic(np.asarray(tap - centre), -0.75)
    return weights.astype(np.float32)


def resize_positions(
    grid: Float[Array, "side side d"], rows: int, columns: int, antialias: bool
) -> Float[Array, "rows columns d"]:
    """Learned positions for another grid of patches."""
    side = grid.shape[0]
    if (rows, columns) == (side, side):
        return grid
    up, across = (bicubic_matrix(side, n, antialias) for n in (rows, columns))
    return jnp.einsum("rh,cw,hwd->rcd", up, across, grid, precision="highest")
