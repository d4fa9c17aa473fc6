"""Token grids: the tokens of a level in time and space, and resampling between grids.

A level has strides (dt, ds) in pixels. Frame 0 is always separate, as in the VAE: a clip of
1 + 4k frames has 1 + 4k/dt token frames, and later frames form groups of dt. The latent grid has
strides (4, f); a level is never coarser than it in time and never finer in space.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pyratok_jax.nn.settings import Stride


def grid_shape(stride: Stride, t: int, h: int, w: int) -> tuple[int, int, int]:
    """Tokens (t, h, w) of a level for a clip of t frames of h x w pixels.

    Raises:
        ValueError: when the clip does not divide into the grid.
    """
    dt, ds = stride
    if (t - 1) % dt or h % ds or w % ds:
        raise ValueError(f"a clip of {t}x{h}x{w} does not divide into strides of {dt} and {ds}")
    return 1 + (t - 1) // dt, h // ds, w // ds


def space_to_depth(x: Float[Array, "b t H W c"], r: int) -> Float[Array, "b t h w d"]:
    """Fold r x r neighbours into channels, ordered (row, column, channel)."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // r, r, w // r, r, c)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h // r, w // r, r * r * c)


def depth_to_space(x: Float[Array, "b t h w d"], r: int) -> Float[Array, "b t H W c"]:
    """Inverse of `space_to_depth`."""
    b, t, h, w, d = x.shape
    c = d // (r * r)
    x = x.reshape(b, t, h, w, r, r, c)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h * r, w * r, c)


def group_time(
    x: Float[Array, "b T h w c"], g: int, *, first: bool = True
) -> Float[Array, "b t h w d"]:
    """Fold groups of g frames into channels, ordered (frame, channel): T = 1 + g n -> 1 + n.

    Frame 0 forms a group of its own, padded with copies of itself, so that one map serves all.
    `first` says whether `x` starts with frame 0; without it, T = g n -> n.
    """
    if g == 1:
        return x
    if first:
        x = jnp.concatenate([jnp.repeat(x[:, :1], g - 1, axis=1), x], axis=1)
    b, t, h, w, c = x.shape
    return (
        x.reshape(b, t // g, g, h, w, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, t // g, h, w, g * c)
    )


def ungroup_time(x: Float[Array, "b t h w d"], g: int) -> Float[Array, "b T h w c"]:
    """Unfold channels (frame, channel) into groups of g frames: 1 + n -> 1 + g n.

    Of frame 0's group only the last frame is kept, which is where `group_time` puts frame 0.
    """
    if g == 1:
        return x
    b, t, h, w, d = x.shape
    x = x.reshape(b, t, h, w, g, d // g).transpose(0, 1, 4, 2, 3, 5)
    return x.reshape(b, t * g, h, w, d // g)[:, g - 1 :]


def resample(
    x: Float[Array, "b t1 h1 w1 c"], shape: tuple[int, int, int], *, first: bool = True
) -> Float[Array, "b t2 h2 w2 c"]:
    """Bring a grid to another: averages where the target is coarser, copies where it is finer.

    Time keeps frame 0 apart, which is there if `first`. Ratios must be whole in one direction or
    the other, per axis.

    Raises:
        ValueError: when a ratio is not whole.
    """
    x = _resample_time(x, shape[0]) if first else _resample_axis(x, 1, shape[0])
    for axis, size in ((2, shape[1]), (3, shape[2])):
        x = _resample_axis(x, axis, size)
    return x


def _resample_time(x: Float[Array, "..."], size: int) -> Float[Array, "..."]:
    if size == x.shape[1]:
        return x
    if size == 1 or x.shape[1] == 1:
        raise ValueError(f"cannot resample {x.shape[1]} token frames to {size}")
    rest = _resample_axis(x[:, 1:], 1, size - 1)
    return jnp.concatenate([x[:, :1], rest], axis=1)


def _resample_axis(x: Float[Array, "..."], axis: int, size: int) -> Float[Array, "..."]:
    now = x.shape[axis]
    if size == now:
        return x
    if size % now == 0:
        return jnp.repeat(x, size // now, axis=axis)
    if now % size == 0:
        shape = (*x.shape[:axis], size, now // size, *x.shape[axis + 1 :])
        return jnp.mean(x.reshape(shape), axis=axis + 1)
    raise ValueError(f"cannot resample an axis of {now} tokens to {size}: the ratio is not whole")
