"""How often each code is used, level by level, and what follows from it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_BITS = 20  # Beyond it, ids are counted by their first 20 bits.


def counted_bits(bits: int) -> int:
    """By how many leading bits ids are counted."""
    return min(bits, MOST_BITS)


def count_codes(levels: Sequence[np.ndarray], counts: np.ndarray, bits: int) -> None:
    """Add the ids of a record's levels to `counts` (levels, 2^counted_bits), int64, in place."""
    shift = np.uint32(bits - counted_bits(bits))
    for level, row in zip(levels, counts, strict=True):
        codes, times = np.unique(level.astype(np.uint32) >> shift, return_counts=True)
        row[codes] += times


def usage(counts: np.ndarray, vocabulary: int) -> dict[str, Any]:
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
    p = present / max(total, 1)
    entropy = float(-(p * np.log2(p)).sum()) if total else 0.0
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
