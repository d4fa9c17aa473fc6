"""Convolutions rewritten for TPUs, several output pixels at a time: the same values, less work."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pyratok_jax.nn.halo import with_borders
from pyratok_jax.nn.lowering import LANES, conv3d

FEW = 16  # outputs up to which a whole register per pixel would be mostly filling


def upsampled_conv(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b t h2 w2 d"]:
    """The 3x3 convolution of frames whose pixels are doubled, without doubling them.

    Of the three taps over a doubled axis two see the same pixel, so that they are added up: even
    outputs see (k0, k1 + k2) from the pixel before on, odd ones (k0 + k1, k2) from their own on.
    Even and odd rows are two convolutions; even and odd columns are their outputs side by side.
    """
    x, rows = with_borders(x, (1, 1))
    x = jnp.pad(x, ((0, 0), (0, 0), rows, (0, 0), (0, 0)))
    b, t, h, w = x.shape[0], x.shape[1], x.shape[2] - 2, x.shape[3]
    k, features = kernel.astype(jnp.float32), kernel.shape[-1]
    none = jnp.zeros_like(k[:, 0])
    columns = jnp.concatenate(
        [
            jnp.stack([k[:, 0], k[:, 1] + k[:, 2], none], axis=1),
            jnp.stack([none, k[:, 0] + k[:, 1], k[:, 2]], axis=1),
        ],
        axis=-1,
    )
    even = jnp.stack([columns[0], columns[1] + columns[2]])
    odd = jnp.stack([columns[0] + columns[1], columns[2]])
    parts = []
    for first, taps in enumerate((even, odd)):
        seen = x[:, :, first : first + h + 1]
        y = conv3d(seen, taps[None].astype(x.dtype), ((0, 0), (0, 0), (1, 1)))
        parts.append(y.reshape(b, t, h, w, 2, features))
    return jnp.stack(parts, axis=3).reshape(b, t, 2 * h, 2 * w, features)


def conv_in_blocks(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    padding: tuple[tuple[int, int], ...],
) -> Float[Array, "b t2 h2 w2 d"]:
    """A convolution of few outputs, computed for blocks of pixels in one stride each.

    A block's pixels are the outputs of one position, its window the union of theirs.
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
