"""How much of the codebook is in use: counts of ids, and what is read off them.

Counts of several batches are added; under jit with a sharded batch they are counts over all
devices.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pyratok_jax.models.lfq import bits_to_ids

MAX_BITS = 24


class CodeUsage(NamedTuple):
    """Figures of one level's code counts.

    Attributes:
        utilisation: share of the vocabulary that occurred.
        perplexity: exp of the entropy of the codes that occurred: as many equally likely codes
            would be as uncertain.
        dead: codes that never occurred.
    """

    utilisation: Float[Array, ""]
    perplexity: Float[Array, ""]
    dead: Int[Array, ""]


def code_counts(q: Float[Array, "*n bits"]) -> Int[Array, "codes"]:
    """How often each of the 2^bits codes occurs.

    Raises:
        ValueError: for more bits than a table of counts can have.
    """
    bits = q.shape[-1]
    if bits > MAX_BITS:
        raise ValueError(f"a table of 2^{bits} counts is too large: at most {MAX_BITS} bits")
    ids = bits_to_ids(q).astype(jnp.int32).reshape(-1)
    return jnp.bincount(ids, length=2**bits).astype(jnp.int32)


def usage(counts: Int[Array, "codes"], vocabulary: int | None = None) -> CodeUsage:
    """Figures of (accumulated) counts; `vocabulary` valid codes, None for all."""
    size = vocabulary or counts.shape[0]
    used = jnp.sum(counts > 0)
    share = counts / jnp.maximum(jnp.sum(counts), 1)
    entropy = -jnp.sum(jnp.where(counts > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0.0))
    return CodeUsage(used / size, jnp.exp(entropy), size - used)
