"""Networks whose frames are split by height: over devices, and into strips within a device.

Inside `split_height` every device holds some rows of each frame. Layers that look over the border
fetch the neighbours' rows (and zeros at the frame's edge, which is the padding they need anyway).

Inside `in_strips` what a device holds is cut further, into strips that lie side by side in the
batch. TPUs compute convolutions over eight images at a time; with fewer, the compiler cuts frames
up itself before every convolution and puts them together after it, which costs more than the
convolution. Here they are cut once.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pyratok_jax.nn.lowering import IMAGES, current_form

_AXIS: contextvars.ContextVar[str | None] = contextvars.ContextVar("height_axis", default=None)
_STRIPS: contextvars.ContextVar[int] = contextvars.ContextVar("strips", default=1)


@contextlib.contextmanager
def split_height(axis: str) -> Iterator[None]:
    """Trace networks as one device's part of frames split over mesh axis `axis`."""
    token = _AXIS.set(axis)
    try:
        yield
    finally:
        _AXIS.reset(token)


def height_axis() -> str | None:
    """The mesh axis over which the height is split, or None."""
    return _AXIS.get()


def here() -> tuple[str | None, int]:
    """Axis and strips in force, for `within`: derivatives are traced when both have ended."""
    return _AXIS.get(), _STRIPS.get()


@contextlib.contextmanager
def within(axis: str | None, strips: int) -> Iterator[None]:
    """Trace as where `here` said so."""
    tokens = _AXIS.set(axis), _STRIPS.set(strips)
    try:
        yield
    finally:
        _AXIS.reset(tokens[0])
        _STRIPS.reset(tokens[1])


def strips_of(h: int, stride: int = 1) -> int:
    """Strips for frames of `h` rows that a network reduces by `stride`: 8, 4, 2 or 1."""
    if current_form() != "tpu":
        return 1
    return next(n for n in (IMAGES, 4, 2, 1) if h % (n * stride) == 0 or n == 1)


@contextlib.contextmanager
def in_strips(count: int) -> Iterator[None]:
    """Trace networks on frames that `cut` has cut into `count` strips."""
    token = _STRIPS.set(count)
    try:
        yield
    finally:
        _STRIPS.reset(token)


def cut(x: Float[Array, "b t h w c"]) -> Float[Array, "bn t h2 w c"]:
    """Frames as strips, each clip's one after the other in the batch."""
    count = _STRIPS.get()
    if count == 1:
        return x
    b, t, h, w, c = x.shape
    strips = x.reshape(b, t, count, h // count, w, c).transpose(0, 2, 1, 3, 4, 5)
    return strips.reshape(b * count, t, h // count, w, c)


def join(x: Float[Array, "bn t h w c"]) -> Float[Array, "b t h2 w c"]:
    """Inverse of `cut`, at any resolution."""
    count = _STRIPS.get()
    if count == 1:
        return x
    n, t, h, w, c = x.shape
    frames = x.reshape(n // count, count, t, h, w, c).transpose(0, 2, 1, 3, 4, 5)
    return frames.reshape(n // count, t, count * h, w, c)


def with_borders(
    x: Float[Array, "b t h w c"], padding: tuple[int, int]
) -> tuple[Float[Array, "b t h2 w c"], tuple[int, int]]:
    """`x` with the rows above and below that a window needs, and the padding still to be done.

    Args:
        x: whole frames, or this device's rows of them, or strips.
        padding: rows of zeros (above, below) that the window needs around a whole frame.
    """
    whole = height_axis() is None and _STRIPS.get() == 1
    if whole or padding == (0, 0):
        return x, padding
    above, below = padding
    parts = [x]
    if above:
        parts.insert(0, _from_neighbour(x[:, :, -above:], 1))
    if below:
        parts.append(_from_neighbour(x[:, :, :below], -1))
    return jnp.concatenate(parts, axis=2), (0, 0)


def _from_neighbour(edges: Float[Array, "bn t r w c"], step: int) -> Float[Array, "bn t r w c"]:
    """Rows handed down (step 1) or up (-1) to the next strip, and over the device's edge."""
    axis, count = height_axis(), _STRIPS.get()
    n = edges.shape[0]
    number = jnp.arange(n)[:, None, None, None, None] % count
    edge = jnp.zeros_like(edges[:1])
    if step == 1:
        moved, outermost = jnp.concatenate([edge, edges[:-1]]), number == 0
    else:
        moved, outermost = jnp.concatenate([edges[1:], edge]), number == count - 1
    if axis is not None:
        # Strip 0 of a clip gets what the last one of the device before sends, and so on.
        sent = _shift(edges[count - 1 :: count] if step == 1 else edges[::count], axis, step)
        return jnp.where(outermost, jnp.repeat(sent, count, axis=0), moved)
    return moved if n == count else jnp.where(outermost, 0, moved)


def _shift(x: Array, axis: str, step: int) -> Array:
    """Send to the device `step` further along; devices that receive nothing get zeros."""
    size = lax.axis_size(axis)
    pairs = [(i, i + step) for i in range(size) if 0 <= i + step < size]
    return lax.ppermute(x, axis, pairs)


def pass_on(x: Array, axis: str) -> Array:
    """Send to the next device, the last one's to the first."""
    size = lax.axis_size(axis)
    return lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])
