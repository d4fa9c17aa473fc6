"""Spatial partitioning by height: over devices with halo exchange, and strips within a device.

Inside `sharded_height` every device holds some rows of each frame. Layers whose window crosses the
boundary fetch halo rows from the neighbours with `ppermute` (and zeros at the frame's edge, which
is the padding they need anyway).

Inside `in_strips` the rows of a device are cut further, into strips that are stacked in the batch
(spatial-to-batch). TPUs compute convolutions over eight images at a time; with fewer, the compiler
cuts frames up itself before every convolution and joins them after it, which costs more than the
convolution. Here they are cut once.
"""

import contextlib

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pyratok_jax.nn import trace
from pyratok_jax.nn.lowering import IMAGES, current_lowering


def sharded_height(axis: str) -> contextlib.AbstractContextManager[None]:
    """Trace networks on one device's shard of frames whose height is sharded over `axis`."""
    return trace.override(height_axis=axis)


def height_axis() -> str | None:
    """The mesh axis over which the height is sharded, or None."""
    return trace.current().height_axis


def strips_of(h: int, stride: int = 1) -> int:
    """Strips for frames of `h` rows that a network reduces by `stride`: 8, 4, 2 or 1."""
    if current_lowering() != "tpu":
        return 1
    return next(n for n in (IMAGES, 4, 2, 1) if h % (n * stride) == 0 or n == 1)


def in_strips(count: int) -> contextlib.AbstractContextManager[None]:
    """Trace networks on frames that `cut` has cut into `count` strips."""
    return trace.override(strips=count)


def cut(x: Float[Array, "b t h w c"]) -> Float[Array, "bn t h2 w c"]:
    """Frames as strips; the strips of a clip follow each other in the batch."""
    count = trace.current().strips
    if count == 1:
        return x
    b, t, h, w, c = x.shape
    strips = x.reshape(b, t, count, h // count, w, c).transpose(0, 2, 1, 3, 4, 5)
    return strips.reshape(b * count, t, h // count, w, c)


def join(x: Float[Array, "bn t h w c"]) -> Float[Array, "b t h2 w c"]:
    """Inverse of `cut`, at any resolution."""
    count = trace.current().strips
    if count == 1:
        return x
    n, t, h, w, c = x.shape
    frames = x.reshape(n // count, count, t, h, w, c).transpose(0, 2, 1, 3, 4, 5)
    return frames.reshape(n // count, t, count * h, w, c)


def with_halo(
    x: Float[Array, "b t h w c"], padding: tuple[int, int]
) -> tuple[Float[Array, "b t h2 w c"], tuple[int, int]]:
    """`x` with the halo rows that a window needs, and the zero padding still to be done.

    Args:
        x: whole frames, this device's rows of them, or strips.
        padding: rows of zeros (above, below) that the window needs around a whole frame.
    """
    whole = height_axis() is None and trace.current().strips == 1
    if whole or padding == (0, 0):
        return x, padding
    above, below = padding
    parts = [x]
    if above:
        parts.insert(0, _halo_rows(x[:, :, -above:], 1))
    if below:
        parts.append(_halo_rows(x[:, :, :below], -1))
    return jnp.concatenate(parts, axis=2), (0, 0)


def with_edge_halo(x: Float[Array, "b t h w c"], rows: int) -> Float[Array, "b t h2 w c"]:
    """`x` with `rows` halo rows above and below; at the frame's edge copies of its edge row."""
    axis, count = height_axis(), trace.current().strips
    if axis is None and count == 1:
        return jnp.pad(x, ((0, 0), (0, 0), (rows, rows), (0, 0), (0, 0)), mode="edge")
    number = jnp.arange(x.shape[0])[:, None, None, None, None] % count
    device = 0 if axis is None else lax.axis_index(axis)
    last = 0 if axis is None else lax.axis_size(axis) - 1
    top = (number == 0) & (device == 0)
    bottom = (number == count - 1) & (device == last)
    above = jnp.where(top, x[:, :, :1], _halo_rows(x[:, :, -rows:], 1))
    below = jnp.where(bottom, x[:, :, -1:], _halo_rows(x[:, :, :rows], -1))
    return jnp.concatenate([above, x, below], axis=2)


def _halo_rows(edges: Float[Array, "bn t r w c"], step: int) -> Float[Array, "bn t r w c"]:
    """Edge rows shifted down (step 1) or up (-1) by one strip, across devices at the outer strips.

    With 2 strips a device, clip k's strips are (device, strip): (0,0) (0,1) | (1,0) (1,1) | ...
    Inside a device a shift is a roll along the batch; between devices it is one `ppermute`.
    """
    axis, count = height_axis(), trace.current().strips
    n = edges.shape[0]
    number = jnp.arange(n)[:, None, None, None, None] % count
    edge = jnp.zeros_like(edges[:1])
    if step == 1:
        moved, outermost = jnp.concatenate([edge, edges[:-1]]), number == 0
    else:
        moved, outermost = jnp.concatenate([edges[1:], edge]), number == count - 1
    if axis is not None:
        # The first strip of a clip gets the last strip's rows of the device before (step 1).
        sent = _shift(edges[count - 1 :: count] if step == 1 else edges[::count], axis, step)
        return jnp.where(outermost, jnp.repeat(sent, count, axis=0), moved)
    return moved if n == count else jnp.where(outermost, 0, moved)


def _shift(x: Array, axis: str, step: int) -> Array:
    """`ppermute` by `step` devices without wrap-around: the outermost device receives zeros."""
    size = lax.axis_size(axis)
    pairs = [(i, i + step) for i in range(size) if 0 <= i + step < size]
    return lax.ppermute(x, axis, pairs)


def ring_permute(x: Array, axis: str) -> Array:
    """`ppermute` to the next device of the ring."""
    size = lax.axis_size(axis)
    return lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])
