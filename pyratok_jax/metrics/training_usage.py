"""How much of the codebook is in use: counts of ids, and what is read off them.

Counts of several batches are added; under jit with a sharded batch they are counts over all
devices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pyratok_jax.models.pyratok.lfq import bits_to_ids

MAX_BITS = 24
LOGGED_BITS = 18


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


def distinct_share(q: Float[Array, "*n bits"], vocabulary: int | None = None) -> Float[Array, ""]:
    """Different codes among these tokens, as a share of how many there could be.

    That is the smaller of the number of tokens and the number of valid codes, so that 1 means that
    no code came twice although another was free. Works for any number of bits.
    """
    ids = jnp.sort(bits_to_ids(q).reshape(-1))
    distinct = 1 + jnp.sum(ids[1:] != ids[:-1])
    return distinct / min(ids.size, vocabulary or 2 ** q.shape[-1])


def usage_metrics(
    codes: Sequence[Float[Array, "_b _t _h _w _bits"]], vocabulary: int | None = None
) -> dict[str, Float[Array, ""]]:
    """What a training logs of each level's use of the codebook, over the global batch.

    Per level: `distinct` (see `distinct_share`), and where the table of counts is small
    `utilisation`, `perplexity` and `dead` codes of this batch.
    """
    found: dict[str, Float[Array, ""]] = {}
    for number, q in enumerate(codes, start=1):
        q = jax.lax.stop_gradient(q)
        found[f"distinct/level_{number}"] = distinct_share(q, vocabulary)
        if q.shape[-1] <= LOGGED_BITS:
            for name, value in usage(code_counts(q), vocabulary)._asdict().items():
                found[f"{name}/level_{number}"] = value.astype(jnp.float32)
    return found
