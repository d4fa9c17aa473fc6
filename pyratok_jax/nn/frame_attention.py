"""Exact attention within frames, or to all frames so far: at once, in blocks, or over devices."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pyratok_jax.nn.halo import height_axis, ring_permute

WHOLE = 4096  # positions up to which all scores of a frame are held at once
BLOCK = 1024
_NONE = -1e30  # score of a masked key; finite, so that differences are not NaN


def attend(
    q: Float[Array, "n s c"],
    k: Float[Array, "n s c"],
    v: Float[Array, "n s c"],
    frames: int = 1,
) -> Float[Array, "n s c"]:
    """Softmax attention of positions to each other, one head.

    Where the height is sharded over devices this is ring attention: keys and values rotate around
    the ring and no device ever holds a whole frame.

    Args:
        q, k, v: positions of one frame, or of several frames, one frame after the other.
        frames: how many; a position attends to its own frame and to all earlier ones.
    """
    axis = height_axis()
    if axis is None and q.shape[1] <= WHOLE:
        mask = None
        if frames > 1:
            order = _frame_numbers(q.shape[1], frames)
            mask = (order[:, None] >= order)[None, None]
        one_head: list[Array] = [x[:, :, None] for x in (q, k, v)]
        query, key, value = one_head
        return jax.nn.dot_product_attention(query, key, value, mask=mask)[:, :, 0]
    return blockwise(q, k, v, axis, frames=frames)


def blockwise(
    q: Float[Array, "n s c"],
    k: Float[Array, "n s c"],
    v: Float[Array, "n s c"],
    axis: str | None = None,
    block: int = BLOCK,
    frames: int = 1,
) -> Float[Array, "n s c"]:
    """The same, never holding more than block x block scores of each row of `q`.

    Args:
        q, k, v: this device's positions where `axis` is given: its rows of every frame.
        axis: mesh axis over which positions are split.
        block: positions per block.
        frames: as for `attend`.
    """
    n, s, c = q.shape
    block = min(block, s)
    queries = _blocks(q * jnp.asarray(c**-0.5, q.dtype), block)
    count = queries.shape[0]
    # Per query: the weighted sum of values, the largest score, the sum of weights.
    wide = jnp.promote_types(q.dtype, jnp.float32)
    state = (
        jnp.zeros((count, n, block, c), wide),
        jnp.full((count, n, block, 1), _NONE, wide),
        jnp.zeros((count, n, block, 1), wide),
    )
    valid = _blocks(jnp.ones((1, s, 1), bool), block)[:, 0, :, 0]
    order = None
    if frames > 1:
        order = _blocks(_frame_numbers(s, frames)[None, :, None], block)[:, 0, :, 0]
    devices = 1 if axis is None else lax.axis_size(axis)
    for device in range(devices):
        over_keys = partial(_over_keys, _blocks(k, block), _blocks(v, block), valid, order)
        state = lax.map(over_keys, (queries, order, state))
        if axis is not None and device < devices - 1:
            k, v = ring_permute(k, axis), ring_permute(v, axis)
    total, _, weight = state
    y = (total / weight).astype(q.dtype)
    return y.transpose(1, 0, 2, 3).reshape(n, count * block, c)[:, :s]


def _frame_numbers(positions: int, frames: int) -> Array:
    """The frame of each position."""
    return jnp.arange(positions) // (positions // frames)


def _blocks(x: Array, block: int) -> Array:
    """(n, s, c) -> (blocks, n, block, c), zero-padded."""
    n, s, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -s % block), (0, 0)))
    return x.reshape(n, -1, block, c).transpose(1, 0, 2, 3)


def _over_keys(
    keys: Array,
    values: Array,
    valid: Array,
    order: Array | None,
    block: tuple[Array, Array | None, tuple[Array, Array, Array]],
) -> tuple[Array, Array, Array]:
    """One block of queries with its running softmax state, over all blocks of keys.

    The first block holds positions of frame 0, which every query sees, so the largest score is one
    of a visible key before any key is hidden.
    """
    q, own, state = block

    @jax.checkpoint
    def step(state, block_of_keys):
        key, value, visible, frame = block_of_keys
        total, largest, weight = state
        scores = jnp.einsum("nqc,nkc->nqk", q, key, preferred_element_type=largest.dtype)
        if own is not None:
            visible = visible & (frame <= own[:, None])
        scores = jnp.where(visible, scores, _NONE)
        top = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
        old, new = jnp.exp(largest - top), jnp.exp(scores - top)
        weighted = jnp.einsum(
            "nqk,nkc->nqc", new.astype(value.dtype), value, preferred_element_type=total.dtype
        )
        weight = weight * old + jnp.sum(new, axis=-1, keepdims=True)
        return (total * old + weighted, top, weight), None

    return lax.scan(step, state, (keys, values, valid, order))[0]
