"""Polyphase convolutions for TPUs: several output pixels per position, same values, less work.

A nearest-neighbour upsampling followed by a 3x3 convolution is split into its even and odd phases
(sub-pixel convolution), and a convolution with few output channels is computed for blocks of pixels
(space-to-depth) so that whole registers are used.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pyratok_jax.nn.halo import with_halo
from pyratok_jax.nn.lowering import LANES, conv3d

FEW = 16  # output channels up to which a register per pixel would be mostly padding


def upsampled_conv(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b t h2 w2 d"]:
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution, without the upsampled frames.

    Of the three taps along an upsampled axis two read the same pixel, so their weights are summed:
    the even phase is (k0, k1 + k2) starting one pixel before, the odd phase (k0 + k1, k2) starting
    at its own. Even and odd rows are two convolutions; even and odd columns are output channels.
    """
    x, rows = with_halo(x, (1, 1))
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
        window = x[:, :, first : first + h + 1]
        y = conv3d(window, taps[None].astype(x.dtype), ((0, 0), (0, 0), (1, 1)))
        parts.append(y.reshape(b, t, h, w, 2, features))
    return jnp.stack(parts, axis=3).reshape(b, t, 2 * h, 2 * w, features)


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
