"""Rotary positions, and causal attention in blocks of queries with a custom VJP.

A block of queries reads only the keys up to its own end, which halves the work of long sequences
and keeps the scores small. The gradient needs the outputs and one number for each query and head;
the scores are computed again (Dao et al. 2022, FlashAttention). Positions are those of RoPE and
M-RoPE, for text and for grids.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from pyratok_jax.models.language.config import RopeConfig
from pyratok_jax.nn.partitioning import can_shard_tokens

# One row serves a batch whose rows have the same positions.
Rotation = tuple[Float[Array, "#b t half"], Float[Array, "#b t half"]]


def frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Angle per position of each of the head_dim / 2 pairs, float32."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    inverse = (1.0 / np.float32(rope.theta) ** exponent).astype(np.float32)
    if rope.kind == "linear":
        return inverse / np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3(inverse, rope)
    return inverse


def _llama3(inverse: np.ndarray, rope: RopeConfig) -> np.ndarray:
    """Llama 3: short wavelengths are kept, long ones divided by the factor, others blended."""
    wavelength = 2 * math.pi / inverse
    low = rope.original_length / rope.low_freq_factor
    high = rope.original_length / rope.high_freq_factor
    scaled = np.where(wavelength > low, inverse / rope.factor, inverse)
    smooth = (rope.original_length / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    mixed = (1 - smooth) * inverse / rope.factor + smooth * inverse
    between = (wavelength >= high) & (wavelength <= low)
    return np.where(between, mixed, scaled).astype(np.float32)


def rotation(
    positions: Int[Array, "b t"] | Int[Array, "3 b t"],
    inverse: np.ndarray,
    section: tuple[int, ...] = (),
) -> Rotation:
    """Cosine and sine (b, t, head_dim / 2) of every token's angles, float32.

    Args:
        positions: one row, or the time, row and column positions of M-RoPE.
        inverse: `frequencies` of the layer.
        section: angles per row of M-RoPE positions; needed when there are three rows.
    """
    if positions.ndim == 3 and section:
        row = np.repeat(np.arange(3), section)
        chosen = jnp.moveaxis(positions[row], 0, -1).astype(jnp.float32)
    elif positions.ndim == 3:
        raise ValueError("three rows of positions need a model with M-RoPE")
    else:
        chosen = positions[..., None].astype(jnp.float32)
    angles = chosen * inverse
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "b t n d"], turn: Rotation) -> Float[Array, "b t n d"]:
    """Rotate the pairs (i, i + d / 2) of every head, in float32."""
    cos, sin = (part[:, :, None] for part in turn)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def grid_positions(
    start: int, grid: tuple[int, int, int], time_step: float = 1.0
) -> Int[np.ndarray, "3 n"]:
    """M-RoPE positions of a (t, h, w) grid in raster order that begins at `start`.

    `time_step` is how far the time position moves per frame; fractions are rounded down.
    """
    t, h, w = grid
    time = np.floor(np.arange(t) * np.float32(time_step)).astype(np.int32)
    rows = np.meshgrid(time, np.arange(h), np.arange(w), indexing="ij")
    return np.stack(rows).reshape(3, -1).astype(np.int32) + start


def mixed_positions(
    parts: Sequence[int | tuple[int, int, int]], time_step: float = 1.0, start: int = 0
) -> Int[np.ndarray, "3 n"]:
    """M-RoPE positions of a sequence of texts (their length) and grids (t, h, w).

    Text advances all three rows by one per token; after a grid the next part starts at the grid's
    start plus its longer side, as in the published model.
    """
    rows = []
    for part in parts:
        if isinstance(part, tuple):
            rows.append(grid_positions(start, part, time_step))
            start += max(part[1], part[2])
        else:
            line = np.arange(part, dtype=np.int32) + start
            rows.append(np.broadcast_to(line, (3, part)))
            start += part
    return np.concatenate(rows, axis=1)


# Queries per block: smaller blocks waste less on the causal mask of long sequences, and compile
# longer.
BLOCK = 512
# Checkpoint names of the residuals of the VJP, beside queries and keys.
KEPT = ("attention_output", "attention_normaliser")
_LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)

Query = Float[Array, "b t kv g d"]
Keys = Float[Array, "b s kv d"]
Mask = Bool[Array, "b 1 t s"]


def attend(
    query: Float[Array, "b t h d"], key: Keys, value: Keys, mask: Mask, scale: float
) -> Float[Array, "b t h d"]:
    """Softmax of scaled scores, in float32, times the values; in the dtype of the values.

    Args:
        query: t new tokens; groups of heads share a key-value head.
        key, value: all tokens, the new ones as late as they fit: query i sees none after
            s - t + i.
        mask: what each query sees. One that sees nothing gives finite values without meaning.
        scale: of the scores.
    """
    b, t, heads, size = query.shape
    s, shared = key.shape[1:3]
    query = query.reshape(b, t, shared, heads // shared, size)
    # Devices that share the queries run one program, whatever their shard.
    length = t if can_shard_tokens(t) else BLOCK
    blocks = []
    for start in range(0, t, length):
        stop = min(start + length, t)
        seen = s - t + stop
        part = (query[:, start:stop], key[:, :seen], value[:, :seen], mask[:, :, start:stop, :seen])
        blocks.append(attend_block(*part, scale))
    return jnp.concatenate(blocks, axis=1).reshape(b, t, heads, size)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend_block(query: Query, key: Keys, value: Keys, mask: Mask, scale: float) -> Query:
    """`attend` of one block of queries, its heads in groups, to all keys that are given.

    The gradient needs what is named `KEPT`, and its arguments.
    """
    return _forward(query, key, value, mask, scale)[0]


def _scores(query: Query, key: Keys, mask: Mask, scale: float) -> Float[Array, "b kv g t s"]:
    scores = jnp.einsum("btkgd,bskd->bkgts", query, key, preferred_element_type=jnp.float32)
    return jnp.where(mask[:, :, None], scores * scale, _LOWEST)


def _forward(
    query: Query, key: Keys, value: Keys, mask: Mask, scale: float
) -> tuple[Query, tuple[Array, ...]]:
    scores = _scores(query, key, mask, scale)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # Materialised once in the dtype of the values; XLA would keep the float32 scores instead.
    weights = jax.lax.optimization_barrier(weights.astype(value.dtype))
    out = jnp.einsum("bkgts,bskd->bkgtd", weights, value, preferred_element_type=jnp.float32)
    out = jnp.moveaxis((out / total).astype(value.dtype), 3, 1)
    out = checkpoint_name(out, KEPT[0])
    normaliser = checkpoint_name(top + jnp.log(total), KEPT[1])
    return out, (query, key, value, mask, out, normaliser)


def _backward(
    scale: float, kept: tuple[Array, ...], given: Query
) -> tuple[Query, Keys, Keys, None]:
    query, key, value, mask, out, normaliser = kept
    weights = jnp.exp(_scores(query, key, mask, scale) - normaliser)
    weights = jax.lax.optimization_barrier(weights.astype(given.dtype))
    of_value = jnp.einsum("bkgts,btkgd->bskd", weights, given)
    of_weights = jnp.einsum("btkgd,bskd->bkgts", given, value, preferred_element_type=jnp.float32)
    mean = jnp.sum(given.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    mean = jnp.moveaxis(mean, 1, 3)[..., None]
    of_scores = (weights * (of_weights - mean) * scale).astype(query.dtype)
    of_query = jnp.einsum("bkgts,bskd->btkgd", of_scores, key)
    of_key = jnp.einsum("bkgts,btkgd->bskd", of_scores, query)
    return of_query, of_key, of_value, None


attend_block.defvjp(_forward, _backward)
