"""Networks whose frames are split by height over devices: borders and attention across them.

Inside `split_height` every device holds some rows of each frame. Layers that look over the border
fetch the neighbours' rows (and zeros at the frame's edge, which is the padding they need anyway).
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_AXIS: contextvars.ContextVar[str | None] = contextvars.ContextVar("height_axis", default=None)


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


def with_borders(
    x: Float[Array, "n h w c"], padding: tuple[int, int]
) -> tuple[Float[Array, "n h2 w c"], tuple[int, int]]:
    """`x` with the rows above and below that a window needs, and the padding still to be done.

    Args:
        x: whole frames, or this device's rows of them.
        padding: rows of zeros (above, below) that the window needs around a whole frame.
    """
    axis = height_axis()
    if axis is None or padding == (0, 0):
        return x, padding
    above, below = padding
    parts = [x]
    if above:
        parts.insert(0, _shift(x[:, -above:], axis, 1))
    if below:
        parts.append(_shift(x[:, :below], axis, -1))
    return jnp.concatenate(parts, axis=1), (0, 0)


def _shift(x: Array, axis: str, step: int) -> Array:
    """Send to the device `step` further along; devices that receive nothing get zeros."""
    size = lax.axis_size(axis)
    pairs = [(i, i + step) for i in range(size) if 0 <= i + step < size]
    return lax.ppermute(x, axis, pairs)


def pass_on(x: Array, axis: str) -> Array:
    """Send to the next device, the last one's to the first."""
    size = lax.axis_size(axis)
    return lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)])
