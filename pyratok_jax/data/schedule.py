"""Which of several weighted choices is made at each position: random access, exact shares.

Positions are grouped in blocks; in every block each choice occurs as often as its weight says, in
an order that depends on the seed and the block's number. So the choice at position n, and how
often it was made before n, follow from (seed, n) alone.
"""

import functools
from collections.abc import Sequence

import numpy as np

_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 4096


class Schedule:
    """A seeded stream of choices 0 .. len(weights) - 1.

    Args:
        weights: relative, not negative, at least one positive.
        seed: any tuple of integers; streams of different seeds are independent.

    Raises:
        ValueError: no positive weight.
    """

    def __init__(self, weights: Sequence[float], seed: Sequence[int]) -> None:
        shares = np.asarray(weights, np.float64)
        if not len(shares) or (shares < 0).any() or shares.sum() <= 0:
            raise ValueError(f"weights {list(weights)} need at least one above 0 and none below")
        shares = shares / shares.sum()
        self._seed = tuple(int(s) for s in seed)
        self.counts = _counts(shares)
        self._sequence = np.repeat(np.arange(len(shares)), self.counts)
        self._block = functools.lru_cache(maxsize=64)(self._shuffled)

    def __reduce__(self) -> tuple:
        return Schedule, (self.counts.tolist(), self._seed)

    def _shuffled(self, block: int) -> np.ndarray:
        return np.random.default_rng((*self._seed, block)).permutation(self._sequence)

    def pick(self, position: int) -> tuple[int, int]:
        """The choice at a position, and how many positions before it made the same choice."""
        block, offset = divmod(position, len(self._sequence))
        order = self._block(block)
        choice = int(order[offset])
        before = int(np.count_nonzero(order[:offset] == choice))
        return choice, block * int(self.counts[choice]) + before


def _counts(shares: np.ndarray) -> np.ndarray:
    """How often each choice occurs in a block: largest remainders, positive shares at least once.

    Shares that are multiples of 1/n for a small n are met exactly.
    """
    for size in range(1, _LARGEST_BLOCK + 1):
        exact = shares * size
        if np.abs(exact - np.rint(exact)).max() < 1e-9:
            return np.rint(exact).astype(int) * -(-_SMALLEST_BLOCK // size)
    exact = shares * _LARGEST_BLOCK
    counts = np.floor(exact).astype(int)
    missing = _LARGEST_BLOCK - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return np.where(shares > 0, np.maximum(counts, 1), 0)
