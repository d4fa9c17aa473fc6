"""Encode and decode frames in overlapping tiles, for one device with little cache.

Not exact: the middle block's attention sees a tile instead of the frame, and borders see zeros. In
the overlaps tiles are blended with linear weights. How far it is off depends on the picture; where
several devices are at hand, `spatial` is exact.
"""

from collections.abc import Callable
from itertools import product

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.wan_vae.model import WanVAE


def tiled_encode(
    vae: WanVAE, video: Float[Array, "b t h w 3"], *, tile: int = 256, overlap: int = 64
) -> Float[Array, "b t2 h2 w2 z"]:
    """Posterior mean, from tiles of `tile` pixels a side, neighbours sharing `overlap`.

    Raises:
        ValueError: when `tile` or `overlap` is no multiple of the spatial factor, or they clash.
    """
    factor = vae.config.spatial_factor
    if tile % factor or overlap % factor or not 0 <= overlap < tile:
        raise ValueError(f"tile {tile} and overlap {overlap} must be multiples of {factor}")
    vae.check(*video.shape[1:4])
    return _tiled(_encode_mean, vae, video, tile, overlap, lambda n: n // factor)


def tiled_decode(
    vae: WanVAE, z: Float[Array, "b t h w z"], *, tile: int = 32, overlap: int = 8
) -> Float[Array, "b T H W 3"]:
    """Video, from tiles of `tile` latent positions a side that share `overlap`.

    Raises:
        ValueError: when the overlap is not smaller than a tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} must be smaller than the tile, {tile}")
    return _tiled(_decode, vae, z, tile, overlap, lambda n: n * vae.config.spatial_factor)


@nnx.jit
def _encode_mean(vae: WanVAE, video: Array) -> Array:
    return vae.encode(video).mean


@nnx.jit
def _decode(vae: WanVAE, z: Array) -> Array:
    return vae.decode(z)


def _tiled(
    run: Callable[[WanVAE, Array], Array],
    vae: WanVAE,
    x: Array,
    tile: int,
    overlap: int,
    scale: Callable[[int], int],
) -> Array:
    """Run every tile (all of one size, so one compilation) and blend what comes out."""
    h, w = x.shape[2:4]
    high, wide = min(tile, h), min(tile, w)
    rows, columns = _ramp(scale(high), scale(overlap)), _ramp(scale(wide), scale(overlap))
    weight = rows[:, None, None] * columns[None, :, None]
    total, weights = jnp.zeros(()), jnp.zeros((scale(h), scale(w), 1))
    for top, left in product(_starts(h, high, overlap), _starts(w, wide, overlap)):
        y = run(vae, x[:, :, top : top + high, left : left + wide])
        if not total.ndim:  # The first tile says how many frames and channels there are.
            total = jnp.zeros((*y.shape[:2], scale(h), scale(w), y.shape[-1]), y.dtype)
        place = (slice(scale(top), scale(top + high)), slice(scale(left), scale(left + wide)))
        total = total.at[:, :, *place].add(y * weight.astype(y.dtype))
        weights = weights.at[place].add(weight)
    return total / weights.astype(total.dtype)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles start; the last one is moved back to end with the frame."""
    starts = list(range(0, max(length - overlap, 1), max(tile - overlap, 1)))
    return sorted({min(start, length - tile) for start in starts})


def _ramp(length: int, overlap: int) -> Float[Array, " n"]:
    """Weights that rise from both ends over the overlap, never zero."""
    distance = jnp.minimum(jnp.arange(length), jnp.arange(length)[::-1]) + 1.0
    return jnp.minimum(distance / (overlap + 1), 1.0)
