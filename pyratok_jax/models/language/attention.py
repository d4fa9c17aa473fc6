"""Causal attention in blocks of queries, with a custom VJP.

A block of queries reads only the keys up to its own end, which halves the work of long sequences
and keeps the scores small. The gradient needs the outputs and one number for each query and head;
the scores are computed again (Dao et al. 2022, FlashAttention).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from pyratok_jax.nn.partitioning import can_shard_tokens

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
        blocks.append(_block(*part, scale))
    return jnp.concatenate(blocks, axis=1).reshape(b, t, heads, size)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _block(query: Query, key: Keys, value: Keys, mask: Mask, scale: float) -> Query:
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


_block.defvjp(_forward, _backward)
