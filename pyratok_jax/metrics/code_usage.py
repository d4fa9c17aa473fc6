"""How often each code is used, level by level: utilisation, perplexity and dead codes.

The same figures from three kinds of counts: ids of any vocabulary, counted sparsely on the host
(`CodeUsage`, evaluation and reports); tables of at most 2^20 counts that are added up over the
shards of a token dataset (`count_codes`, `usage`); tables on device under jit (`code_counts`,
`usage_metrics`, training), where counts of a sharded batch are counts over all devices.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pyratok_jax.io import Json
from pyratok_jax.models.pyratok.lfq import bits_to_ids

TABLE_BITS = 20  # Beyond it, ids of a dataset are counted by their first 20 bits.
DEVICE_BITS = 24  # Of a table on device.
LOGGED_BITS = 18  # Of a table that a training step makes.


def _entropy(counts: np.ndarray, log: Callable[[np.ndarray], np.ndarray]) -> float:
    """Entropy of the frequencies of codes that occur, in the unit of the logarithm; 0 for none."""
    shares = counts / max(int(counts.sum()), 1)
    return -float(np.sum(shares * log(shares))) if len(counts) else 0.0


class CodeUsage:
    """How the codes of each level are used, over any number of clips.

    Args:
        levels: number of levels.
        vocabulary: number of valid codes K.
    """

    def __init__(self, levels: int, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._codes = [np.zeros(0, np.uint32) for _ in range(levels)]
        self._counts = [np.zeros(0, np.int64) for _ in range(levels)]

    def add(self, ids: Sequence[np.ndarray]) -> None:
        """Count token ids, one array of any shape per level.

        Raises:
            ValueError: not as many arrays as levels.
        """
        if len(ids) != len(self._codes):
            raise ValueError(f"expected ids of {len(self._codes)} levels, got {len(ids)}")
        for level, new in enumerate(ids):
            codes, counts = np.unique(np.asarray(new, np.uint32).reshape(-1), return_counts=True)
            self._count(level, codes, counts)

    def merge(self, other: "CodeUsage") -> None:
        """Count everything that `other`, of as many levels, has counted."""
        for level, codes in enumerate(other._codes):
            self._count(level, codes, other._counts[level])

    def _count(self, level: int, codes: np.ndarray, counts: np.ndarray) -> None:
        merged = np.concatenate([self._codes[level], codes])
        self._codes[level], inverse = np.unique(merged, return_inverse=True)
        weights = np.concatenate([self._counts[level], counts])
        self._counts[level] = np.bincount(inverse, weights).astype(np.int64)

    def summary(self) -> list[dict[str, Json]]:
        """Per level: level (from 1), tokens, distinct, utilisation, perplexity, dead codes."""
        return [self._level(number, counts) for number, counts in enumerate(self._counts, start=1)]

    def _level(self, number: int, counts: np.ndarray) -> dict[str, Json]:
        distinct = len(counts)
        return {
            "level": number,
            "tokens": int(counts.sum()),
            "distinct": distinct,
            "utilisation": distinct / self._vocabulary,
            "perplexity": float(np.exp(_entropy(counts, np.log))),
            "dead": self._vocabulary - distinct,
        }


def code_usage(ids: Iterable[Sequence[np.ndarray]], vocabulary: int) -> list[dict[str, Json]]:
    """`CodeUsage.summary` of clips, each given as its token ids per level.

    Raises:
        ValueError: no clip, or clips with unequal numbers of levels.
    """
    usage: CodeUsage | None = None
    for clip in ids:
        usage = usage or CodeUsage(len(clip), vocabulary)
        usage.add(clip)
    if usage is None:
        raise ValueError("no clip was counted")
    return usage.summary()


def counted_bits(bits: int) -> int:
    """By how many leading bits ids are counted."""
    return min(bits, TABLE_BITS)


def count_codes(levels: Sequence[np.ndarray], counts: np.ndarray, bits: int) -> None:
    """Add the ids of a record's levels to `counts` (levels, 2^counted_bits), int64, in place."""
    shift = np.uint32(bits - counted_bits(bits))
    for level, row in zip(levels, counts, strict=True):
        codes, times = np.unique(level.astype(np.uint32) >> shift, return_counts=True)
        row[codes] += times


def usage(counts: np.ndarray, vocabulary: int) -> dict[str, Json]:
    """Numbers of one level: how many codes are used, how evenly, and which most.

    Args:
        counts: how often each code occurs.
        vocabulary: number of valid ids.

    Returns:
        tokens; used (codes that occur); utilisation (their share of the vocabulary); entropy in
        bits per token and perplexity of the code frequencies; histogram (how many codes occur 0, 1,
        2-3, 4-7, ... times); most (the ten commonest: id, times).
    """
    total = int(counts.sum())
    size = min(vocabulary, len(counts))
    present = counts[counts > 0]
    entropy = _entropy(present, np.log2)
    order = np.argsort(-counts, kind="stable")[:10]
    return {
        "tokens": total,
        "used": len(present),
        "utilisation": len(present) / size,
        "entropy": entropy,
        "perplexity": float(2**entropy),
        "histogram": _histogram(counts[:size]),
        "most": [[int(code), int(counts[code])] for code in order if counts[code]],
    }


def _histogram(counts: np.ndarray) -> dict[str, int]:
    bins = {"0": int((counts == 0).sum())}
    exponent = 0
    while len(counts) and 2**exponent <= counts.max():
        low, high = 2**exponent, 2 ** (exponent + 1) - 1
        name = str(low) if low == high else f"{low}-{high}"
        bins[name] = int(((counts >= low) & (counts <= high)).sum())
        exponent += 1
    return bins


class UsageFigures(NamedTuple):
    """Figures of one level's code counts.

    Attributes:
        utilisation: share of the vocabulary that occurred.
        perplexity: exp of the entropy of the code frequencies, the number of equally likely codes
            of the same entropy.
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
    if bits > DEVICE_BITS:
        raise ValueError(f"a table of 2^{bits} counts is too large: at most {DEVICE_BITS} bits")
    ids = bits_to_ids(q).astype(jnp.int32).reshape(-1)
    return jnp.bincount(ids, length=2**bits).astype(jnp.int32)


def usage_of_counts(counts: Int[Array, "codes"], vocabulary: int | None = None) -> UsageFigures:
    """Figures of (accumulated) counts; `vocabulary` valid codes, None for all."""
    size = vocabulary or counts.shape[0]
    used = jnp.sum(counts > 0)
    share = counts / jnp.maximum(jnp.sum(counts), 1)
    entropy = -jnp.sum(jnp.where(counts > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0.0))
    return UsageFigures(used / size, jnp.exp(entropy), size - used)


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
    """What training logs of each level's use of the codebook, over the global batch.

    Per level: `distinct` (see `distinct_share`), and where the table of counts is small
    `utilisation`, `perplexity` and `dead` codes of this batch.
    """
    found: dict[str, Float[Array, ""]] = {}
    for number, q in enumerate(codes, start=1):
        q = jax.lax.stop_gradient(q)
        found[f"distinct/level_{number}"] = distinct_share(q, vocabulary)
        if q.shape[-1] <= LOGGED_BITS:
            for name, value in usage_of_counts(code_counts(q), vocabulary)._asdict().items():
                found[f"{name}/level_{number}"] = value.astype(jnp.float32)
    return found
