"""Convolutions with less work for the same values: polyphase forms on TPUs, Winograd's on the CPU.

A nearest-neighbour upsampling followed by a 3x3 convolution is split into its even and odd phases
(sub-pixel convolution), and a convolution with few output channels is computed for blocks of pixels
(space-to-depth) so that whole registers are used.

Four output frames that each see three take twelve 2-D convolutions as a sum over time taps.
Winograd's minimal filtering F(4, 3) takes six, of sums of frames with sums of taps, and F(2, 3)
four in place of six (Winograd, 1980; Lavin and Gray, arXiv 1509.09308, where it is used in space).
In time a transform is a sum of whole frames, which costs little beside a convolution. In float32
the result differs from the plain sum by 1e-6 of its norm; half precision would lose too much. A
frame's value depends on later frames of its tile by rounding alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pyratok_jax.nn.halo import with_halo
from pyratok_jax.nn.lowering import LANES, conv3d

FEW = 16  # output channels up to which a register per pixel would be mostly padding
TAPS = 3  # in time, of the convolutions that `winograd_over_time` takes

FrameConv = Callable[[Float[Array, "b t h w c"], Float[Array, "kh kw c d"]], Array]
Rows = tuple[tuple[float, ...], ...]
Sides = tuple[tuple[int, int], tuple[int, int]]


def upsampled_conv(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b t h2 w2 d"]:
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution, without the upsampled frames.

    Of the three taps along an upsampled axis two read the same pixel, so their weights are summed:
    the even phase is (k0, k1 + k2) starting one pixel before, the odd phase (k0 + k1, k2) starting
    at its own. Even and odd rows are two convolutions; even and odd columns are output channels.
    """
    x, b, t, h, w = _with_rows_around(x)
    features = kernel.shape[-1]
    parts = []
    for first, rows in enumerate(_phases(kernel.astype(jnp.float32), 0)):
        even, odd = _phases(rows, 1)
        none = jnp.zeros_like(even[:, :1])
        columns = [jnp.concatenate([even, none], axis=1), jnp.concatenate([none, odd], axis=1)]
        taps = jnp.concatenate(columns, axis=-1)[None].astype(x.dtype)
        y = conv3d(x[:, :, first : first + h + 1], taps, ((0, 0), (0, 0), (1, 1)))
        parts.append(y.reshape(b, t, h, w, 2, features))
    return jnp.stack(parts, axis=3).reshape(b, t, 2 * h, 2 * w, features)


def upsampled_conv_by_phases(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "3 3 c d"],
    convolve: Callable[[Array, Array, Sides], Array],
) -> Float[Array, "b t h2 w2 d"]:
    """The same as four convolutions of 2x2 taps: 16 products for each input pixel, not 36.

    Args:
        x, kernel: as in `upsampled_conv`.
        convolve: frames with a kernel (kh, kw, c, d), padded by rows and columns.
    """
    x, b, t, h, w = _with_rows_around(x)
    rows = []
    for first, of_rows in enumerate(_phases(kernel.astype(jnp.float32), 0)):
        window = x[:, :, first : first + h + 1]
        columns = [
            convolve(window, taps.astype(x.dtype), ((0, 0), (1 - side, side)))
            for side, taps in enumerate(_phases(of_rows, 1))
        ]
        rows.append(jnp.stack(columns, axis=4))
    return jnp.stack(rows, axis=3).reshape(b, t, 2 * h, 2 * w, kernel.shape[-1])


def _with_rows_around(x: Float[Array, "b t h w c"]) -> tuple[Array, int, int, int, int]:
    """The clip with the rows above and below, a neighbour's or zeros, and its sizes before."""
    b, t, h, w = x.shape[:4]
    x, rows = with_halo(x, (1, 1))
    return jnp.pad(x, ((0, 0), (0, 0), rows, (0, 0), (0, 0))), b, t, h, w


def _phases(kernel: Float[Array, "kh kw c d"], axis: int) -> tuple[Array, Array]:
    """The two taps along an upsampled axis of its even and of its odd positions."""
    k0, k1, k2 = (lax.index_in_dim(kernel, tap, axis) for tap in range(3))
    return jnp.concatenate([k0, k1 + k2], axis), jnp.concatenate([k0 + k1, k2], axis)


def conv_in_blocks(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    padding: tuple[tuple[int, int], ...],
) -> Float[Array, "b t2 h2 w2 d"]:
    """A convolution with few output channels, strided over blocks of p x q output pixels.

    Space-to-depth of the output: the pixels of a block are output channels of one position, whose
    window is the union of their windows.
    """
    kt, kh, kw, _, d = kernel.shape
    h = x.shape[2] + sum(padding[1]) - kh + 1
    w = x.shape[3] + sum(padding[2]) - kw + 1
    p = next(n for n in (4, 2, 1) if h % n == 0)
    q = next(n for n in (8, 4, 2, 1) if w % n == 0 and (n == 1 or p * n * d <= LANES))
    none = (0, 0)
    placed = [
        jnp.pad(kernel, (none, (i, p - 1 - i), (j, q - 1 - j), none, none))
        for i in range(p)
        for j in range(q)
    ]
    y = conv3d(x, jnp.concatenate(placed, axis=-1), padding, (1, p, q))
    b, t = y.shape[:2]
    y = y.reshape(b, t, h // p, w // q, p, q, d).transpose(0, 1, 2, 4, 3, 5, 6)
    return y.reshape(b, t, h, w, d)


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
