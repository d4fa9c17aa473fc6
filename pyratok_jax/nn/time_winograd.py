"""Convolutions over three frames by Winograd's minimal filtering: fewer 2-D convolutions.

Four output frames that each see three take twelve 2-D convolutions as a sum over time taps. F(4, 3)
takes six, of sums of frames with sums of taps, and F(2, 3) four in place of six (Winograd, 1980;
Lavin and Gray, arXiv 1509.09308, where it is used in space). In time a transform is a sum of whole
frames, which costs little beside a convolution. In float32 the result differs from the plain sum by
1e-6 of its norm; half precision would lose too much. A frame's value depends on later frames of its
tile by rounding alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

TAPS = 3

FrameConv = Callable[[Float[Array, "b t h w c"], Float[Array, "kh kw c d"]], Array]
Rows = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class _Filter:
    """F(m, 3): y = A [(G g) * (B d)] with n = m + 2 products.

    Attributes:
        frames: B, (n, n): from the input frames of a tile to those that are convolved.
        taps: G, (n, 3): from the kernel's taps to their kernels.
        outputs: A, (m, n): from the products to the tile's output frames.
    """

    frames: Rows
    taps: Rows
    outputs: Rows


_F2 = _Filter(
    frames=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    taps=((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    outputs=((1, 1, 1, 0), (0, 1, -1, -1)),
)
_F4 = _Filter(
    frames=(
        (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
    ),
    taps=(
        (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
    ),
    outputs=(
        (1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1),
    ),
)  # fmt: skip


def winograd_over_time(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "3 kh kw c d"], convolve: FrameConv
) -> Float[Array, "b t2 h2 w2 d"]:
    """A convolution over time without padding, t2 = t - 2, of which `convolve` does the space.

    Tiles of four frames from the first on, then one of two and one of one where frames are left:
    a clip in chunks of multiples of four has the same tiles as the whole clip.
    """
    frames = x.shape[1] - TAPS + 1
    parts, start = [], 0
    for filter_ in (_F4, _F2):
        tiles = (frames - start) // len(filter_.outputs)
        if tiles:
            parts.append(_tiles(x[:, start:], kernel, convolve, filter_, tiles))
            start += tiles * len(filter_.outputs)
    if start < frames:
        taps = [convolve(x[:, start + k : start + k + 1], kernel[k]) for k in range(TAPS)]
        parts.append(sum(taps[1:], taps[0]))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _tiles(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "3 kh kw c d"],
    convolve: FrameConv,
    filter_: _Filter,
    tiles: int,
) -> Float[Array, "b t2 h2 w2 d"]:
    """The first `tiles` tiles of the output."""
    step = len(filter_.outputs)
    frames = [x[:, k : k + step * (tiles - 1) + 1 : step] for k in range(step + TAPS - 1)]
    taps = [kernel[k] for k in range(TAPS)]
    products = [
        convolve(_combine(of_frames, frames), _combine(of_taps, taps))
        for of_frames, of_taps in zip(filter_.frames, filter_.taps, strict=True)
    ]
    made = jnp.stack([_combine(row, products) for row in filter_.outputs], axis=2)
    return made.reshape(made.shape[0], tiles * step, *made.shape[3:])


def _combine(factors: Sequence[float], parts: Sequence[Array]) -> Array:
    """A sum of parts, those with the factor 0 left out."""
    terms = [
        part if factor == 1 else part * factor
        for factor, part in zip(factors, parts, strict=True)
        if factor
    ]
    return functools.reduce(jnp.add, terms)
