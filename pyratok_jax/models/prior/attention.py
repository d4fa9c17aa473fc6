"""Attention of a prior: four-axis rotary positions, and visibility in place of n x n masks."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pyratok_jax.models.language.attention import KEPT, Rotation, attend_block
from pyratok_jax.models.language.fused_attention import can_fuse, fused_attention
from pyratok_jax.models.prior.layout import Visibility, visible
from pyratok_jax.nn.trace import checkpoint

# Queries per block of a static pass, at most. Parts of short clips are small: of 900 tokens of
# `blocks` one sees about 150, and large blocks would skip nothing.
LONG_BLOCK, SHORT_BLOCK, _SHORT = 512, 64, 2048
# Keys of a long pass that are skipped together.
TILE = 128
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

    On TPUs a kernel (`models.language.fused_attention`). Elsewhere blocks of queries read only the
    keys of which they see something, in tiles; scores are computed again in the backward pass.

    Args:
        query, key, value: of all tokens.
        seen: NumPy arrays.
        valid: keys that are there in each row.
        window: see `visible`.
    """
    if can_fuse(query, key):
        mask = np.asarray(visible(seen, seen, window))
        scale = query.shape[-1] ** -0.5
        return fused_attention(query, key, value, mask, valid, scale, name=KEPT[0])
    n, part = query.shape[1], np.asarray(seen.part)
    short = n <= _SHORT
    block, tile = (SHORT_BLOCK, SHORT_BLOCK) if short else (LONG_BLOCK, TILE)
    blocks = []
    for own in _query_blocks(np.zeros_like(part) if short else part, block):
        asking = Visibility(*(x[own] for x in seen))
        mask = np.asarray(visible(asking, seen, window))
        runs = _runs(np.asarray(mask.any(axis=0)), tile)
        asked = Visibility(*(_joined(x, runs, np.concatenate) for x in seen))
        run: Callable[..., Heads] = functools.partial(
            _attend_visible, asking=asking, asked=asked, window=window
        )
        run = checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names(*KEPT))
        keys, values = (_joined(x, runs, jnp.concatenate, axis=1) for x in (key, value))
        blocks.append(run(query[:, own], keys, values, _joined(valid, runs, jnp.concatenate, 1)))
    return jnp.concatenate(blocks, axis=1)


def _query_blocks(part: Int[np.ndarray, " n"], block: int) -> list[slice]:
    """Blocks of at most `block` queries of one part each."""
    starts = [0, *(np.flatnonzero(np.diff(part)) + 1), len(part)]
    return [
        slice(start, min(start + block, stop))
        for first, stop in itertools.pairwise(starts)
        for start in range(first, stop, block)
    ]


def _runs(needed: Bool[np.ndarray, " s"], tile: int) -> list[slice]:
    """Runs of keys that hold all needed ones, in whole tiles."""
    tiles = np.pad(needed, (0, -len(needed) % tile)).reshape(-1, tile).any(axis=1)
    edges = np.flatnonzero(np.diff(tiles, prepend=False, append=False)) * tile
    return [slice(a, min(b, len(needed))) for a, b in edges.reshape(-1, 2).tolist()]


def _joined(x: Any, runs: list[slice], join: Callable[..., Any], axis: int = 0) -> Any:
    """Slices of an array along an axis, joined; the array itself where they are all of it."""
    parts = [x[(slice(None),) * axis + (run,)] for run in runs]
    return parts[0] if len(parts) == 1 else join(parts, axis=axis)


def _attend_visible(
    query: Heads,
    key: Keys,
    value: Keys,
    valid: Bool[Array, "b s"],
    *,
    asking: Visibility,
    asked: Visibility,
    window: int,
) -> Heads:
    b, t, heads, size = query.shape
    shared = key.shape[2]
    # From three numbers per token where it is needed: as a constant it would be t x s.
    asking, asked = (Visibility(*map(jnp.asarray, x)) for x in (asking, asked))
    mask = jnp.asarray(visible(asking, asked, window))
    grouped = query.reshape(b, t, shared, heads // shared, size)
    mask = (mask & valid[:, None])[:, None]
    return attend_block(grouped, key, value, mask, size**-0.5).reshape(b, t, heads, size)
