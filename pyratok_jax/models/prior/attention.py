"""Attention of a prior: four-axis rotary positions, and visibility in place of n x n masks."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pyratok_jax.models.language.attention import Rotation
from pyratok_jax.models.prior.layout import Visibility, visible

# Queries per block of a static pass, and keys per block that may be skipped. Parts of short clips
# are small: of 900 tokens of `blocks` one sees about 150, and large blocks would skip nothing.
LONG_BLOCK, SHORT_BLOCK, _SHORT = 512, 64, 2048
_LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)

Heads = Float[Array, "b t h d"]
Keys = Float[Array, "b s kv d"]


class Segment(NamedTuple):
    """Keys and values, and which of them each query sees."""

    key: Keys
    value: Keys
    mask: Bool[Array, "#b t s"]


def axes_of(pairs: int) -> tuple[int, ...]:
    """How many of a head's rotated pairs turn with level, time, row and column.

    An eighth goes to the level; time gets what does not divide between the others.
    """
    level = max(pairs // 8, 1)
    side = (pairs - level) // 3
    return level, pairs - level - 2 * side, side, side


def turn(places: Float[Array, "#b n 4"], head_dim: int, theta: float) -> Rotation:
    """Cosines and sines of tokens at positions (level, t, h, w), float32."""
    axes = axes_of(head_dim // 2)
    axis = np.repeat(np.arange(4), axes)
    exponent = np.concatenate([np.arange(n) / n for n in axes])
    inverse = (theta**-exponent).astype(np.float32)
    angles = jnp.asarray(places, jnp.float32)[..., axis] * inverse
    return jnp.cos(angles), jnp.sin(angles)


def attend(query: Heads, segments: tuple[Segment, ...]) -> Heads:
    """Softmax over the keys of all segments together; scores and softmax in float32.

    Keys are not joined into one array, so that a cache is read where it lies. A query that sees
    nothing gives finite values without meaning.
    """
    b, t, heads, size = query.shape
    shared = segments[0].key.shape[2]
    grouped = query.reshape(b, t, shared, heads // shared, size)
    scores = [_scores(grouped, one, size**-0.5) for one in segments]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    ends = np.cumsum([one.key.shape[1] for one in segments])[:-1]
    parts = jnp.split(weights, ends, axis=-1)
    pooled = sum(
        jnp.einsum("bkgts,bskd->btkgd", weight.astype(one.value.dtype), one.value)
        for weight, one in zip(parts, segments, strict=True)
    )
    return jnp.asarray(pooled).astype(query.dtype).reshape(b, t, heads, size)


def _scores(
    query: Float[Array, "b t kv g d"], segment: Segment, scale: float
) -> Float[Array, "b kv g t s"]:
    scores = jnp.einsum("btkgd,bskd->bkgts", query, segment.key, preferred_element_type=jnp.float32)
    return jnp.where(segment.mask[:, None, None], scores * scale, _LOWEST)


def attend_static(
    query: Heads, key: Keys, value: Keys, seen: Visibility, valid: Bool[Array, "b s"], window: int
) -> Heads:
    """Attention of a whole sequence to itself under a static visibility.

    Blocks of queries read only the blocks of keys of which they see something; scores are computed
    again in the backward pass.

    Args:
        query, key, value: of all tokens.
        seen: NumPy arrays.
        valid: keys that are there in each row.
        window: see `visible`.
    """
    n = query.shape[1]
    block = SHORT_BLOCK if n <= _SHORT else LONG_BLOCK
    blocks = []
    for start in range(0, n, block):
        own = slice(start, min(start + block, n))
        mask = np.asarray(visible(Visibility(*(x[own] for x in seen)), seen, window))
        needed = [e for e in range(0, n, block) if mask[:, e : e + block].any()]
        columns = np.concatenate([np.arange(e, min(e + block, n)) for e in needed])

        run: Callable[..., Heads] = functools.partial(_attend_masked, mask=mask[:, columns])
        parts: tuple[Array, ...] = (key, value, valid)
        if len(columns) < n:
            parts = tuple(_columns(x, needed, block) for x in parts)
        run = run if n <= block else jax.checkpoint(run)
        blocks.append(run(query[:, own], *parts))
    return jnp.concatenate(blocks, axis=1)


def _attend_masked(
    query: Heads, key: Keys, value: Keys, valid: Bool[Array, "b s"], mask: Bool[np.ndarray, "t s"]
) -> Heads:
    return attend(query, (Segment(key, value, jnp.asarray(mask) & valid[:, None]),))


def _columns(x: Array, starts: list[int], block: int) -> Array:
    """Blocks of an array along its second axis, joined."""
    return jnp.concatenate([x[:, e : e + block] for e in starts], axis=1)
