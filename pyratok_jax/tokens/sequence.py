"""Tokens of a block as one sequence of ids, and back, for training generators.

The order is that of the alignment's autoregressive pass: SOI, level 1, Q-SEP, level 2, Q-SEP, ...,
the last level; inside a level raster order over time, height and width. Ids of tokens are their
own; Q-SEP = K, as in the alignment's softmax head, and SOI, which nothing predicts, K + 1.
"""

from collections.abc import Sequence

import numpy as np

from pyratok_jax.errors import UserError


def soi_id(vocabulary: int) -> int:
    """The id of the mark that begins the visual tokens."""
    return vocabulary + 1


def separator_id(vocabulary: int) -> int:
    """The id of the mark between two levels."""
    return vocabulary


def sequence_length(grids: Sequence[Sequence[int]]) -> int:
    """Length of the flat sequence of levels with these grids (t, h, w): one mark before each."""
    return sum(int(np.prod(grid)) + 1 for grid in grids)


def flatten(levels: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
    """One sequence (n,) of a block's levels; int32 where the ids fit, else int64."""
    dtype = np.int32 if vocabulary + 2 <= 2**31 else np.int64
    parts: list[np.ndarray] = []
    for number, level in enumerate(levels):
        mark = separator_id(vocabulary) if number else soi_id(vocabulary)
        parts += [np.array([mark], dtype), np.asarray(level).ravel().astype(dtype)]
    return np.concatenate(parts)


def unflatten(
    sequence: np.ndarray, grids: Sequence[Sequence[int]], vocabulary: int
) -> tuple[np.ndarray, ...]:
    """The levels of a sequence from `flatten`, or of a generated one: uint16 or uint32 (t, h, w).

    Args:
        sequence: ids (n,), beginning with SOI.
        grids: (t, h, w) of every level.
        vocabulary: number of valid ids.

    Raises:
        UserError: another length, a mark where a token belongs, or the reverse.
    """
    sequence = np.asarray(sequence)
    expected = sequence_length(grids)
    if sequence.shape != (expected,):
        raise UserError(
            f"a sequence of shape {sequence.shape} does not hold grids {list(map(tuple, grids))}; "
            f"expected ({expected},): SOI, the levels, and Q-SEP between them"
        )
    dtype = np.uint16 if vocabulary <= 2**16 else np.uint32
    levels, at = [], 0
    for number, grid in enumerate(grids):
        mark = separator_id(vocabulary) if number else soi_id(vocabulary)
        if int(sequence[at]) != mark:
            raise UserError(
                f"position {at} of the sequence holds {int(sequence[at])}, expected the mark "
                f"{mark} before level {number + 1}"
            )
        size = int(np.prod(grid))
        ids = sequence[at + 1 : at + 1 + size]
        wrong = np.flatnonzero((ids < 0) | (ids >= vocabulary))
        if len(wrong):
            raise UserError(
                f"position {at + 1 + wrong[0]} of the sequence holds {int(ids[wrong[0]])}, "
                f"expected a token of level {number + 1} below {vocabulary}"
            )
        levels.append(ids.astype(dtype).reshape(tuple(grid)))
        at += 1 + size
    return tuple(levels)
