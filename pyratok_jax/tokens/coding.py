"""Entropy coding of one level's ids: adaptive, lossless, the same on every machine.

Ids are coded bit by bit with constriction's range coder. The probability of a bit is counted in the
context of the same bit of the token one frame earlier, and the same bit of the four neighbours:
positions are coded in two passes, as on a chessboard, so that the second pass knows its neighbours,
and the first takes those of the earlier frame. All bits of an id share their counts, and a context
with all signs turned counts as the same with the bit turned: records are short, and few contexts
are learned sooner. Counts are integers and their quotients correctly rounded, hence equal wherever
they are computed.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

_RAW, _CODED = 0, 1
_LIMIT = 4096  # Counts are halved beyond it, so that old statistics fade.
_START = 16  # Count of either symbol before any is seen.
_CONTEXTS = 27  # Three states of the earlier token times nine sums of neighbours.
_MOST_TOKENS = 1 << 31


def pack(ids: np.ndarray, bits: int) -> bytes:
    """The code of a level's ids (t, h, w): a byte that names the coding, then the data.

    Never more than one byte longer than the raw ids.
    """
    import constriction

    encoder, model = constriction.stream.queue.RangeEncoder(), _bernoulli()
    values = ids.astype(np.uint32)

    def encode(probabilities: np.ndarray, place: tuple[int, int, np.ndarray]) -> np.ndarray:
        frame, shift, where = place
        chosen = (values[frame].ravel()[where] >> np.uint32(shift) & 1).astype(np.int32)
        encoder.encode(chosen, model, probabilities)
        return chosen

    _walk(ids.shape, bits, encode)
    coded = encoder.get_compressed().astype("<u4").tobytes()
    raw = ids.astype("<u2" if bits <= 16 else "<u4").tobytes()
    return bytes([_CODED]) + coded if len(coded) < len(raw) else bytes([_RAW]) + raw


def unpack(data: bytes, grid: tuple[int, ...], bits: int) -> np.ndarray:
    """The ids (t, h, w) behind `pack`, uint16 or uint32.

    Raises:
        ValueError: data that `pack` cannot have written.
    """
    dtype = np.dtype("<u2" if bits <= 16 else "<u4")
    if len(grid) != 3 or min(grid) < 1 or np.prod(grid, dtype=object) > _MOST_TOKENS or not data:
        raise ValueError(f"no tokens, or a grid {grid}")
    if data[0] == _RAW:
        return np.frombuffer(data[1:], dtype).reshape(grid)
    # A bit's probability is at most 1 - 1 / _LIMIT, hence no bit is stored in less.
    if np.prod(grid, dtype=object) * bits > (8 * len(data) + 64) * _LIMIT:
        raise ValueError(f"{len(data)} bytes cannot hold a grid {grid} of {bits} bits")
    if data[0] != _CODED or len(data) % 4 != 1:
        raise ValueError(f"packed tokens of form {data[0]} and {len(data)} bytes")
    import constriction

    words = np.frombuffer(data[1:], "<u4").astype(np.uint32)
    decoder, model = constriction.stream.queue.RangeDecoder(words), _bernoulli()
    ids = _walk(grid, bits, lambda probabilities, _: decoder.decode(model, probabilities))
    return ids.astype(dtype)


@cache
def _bernoulli() -> Any:
    import constriction

    return constriction.stream.model.Bernoulli(perfect=False)


def _walk(
    grid: tuple[int, ...],
    bits: int,
    code: Callable[[np.ndarray, tuple[int, int, np.ndarray]], np.ndarray],
) -> np.ndarray:
    """Visit every bit in coding order; the same for both directions.

    Args:
        grid: (t, h, w).
        bits: bits per id.
        code: given the probabilities of ones, and the frame, shift and flat positions of the bits,
            codes them and returns their values.

    Returns:
        the ids (t, h, w), uint32.
    """
    frames, height, width = grid
    counts = np.full((2, _CONTEXTS, 2), _START, np.int64)
    ids = np.zeros((frames, height * width), np.uint32)
    earlier = np.zeros((bits, height, width), np.int8)
    for frame in range(frames):
        planes = np.zeros((bits, height, width), np.int8)
        for plane in range(bits):
            for parity, where in _passes(height, width):
                known = planes[plane] if parity else earlier[plane]
                context = _neighbours(known).ravel()[where] * 3 + earlier[plane].ravel()[where] + 1
                turned = (context < _CONTEXTS // 2).astype(np.int64)
                context = np.where(turned, _CONTEXTS - 1 - context, context)
                table = counts[parity]
                ones, total = table[context, 1 - turned], table[context].sum(axis=1)
                values = code(ones / total, (frame, bits - 1 - plane, where))
                planes[plane].reshape(-1)[where] = 2 * values - 1
                ids[frame, where] |= values.astype(np.uint32) << np.uint32(bits - 1 - plane)
                _count(table, context, values ^ turned)
        earlier = planes
    return ids.reshape(grid)


def _passes(height: int, width: int) -> Iterator[tuple[int, np.ndarray]]:
    dark, light = _board(height, width)
    yield 0, dark
    if len(light):
        yield 1, light


@cache
def _board(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    parity = np.add.outer(np.arange(height), np.arange(width)).ravel() % 2
    return np.flatnonzero(parity == 0), np.flatnonzero(parity == 1)


def _neighbours(plane: np.ndarray) -> np.ndarray:
    """Sum of the four neighbours of every position, plus 4."""
    total = np.full(plane.shape, 4, np.int64)
    total[1:] += plane[:-1]
    total[:-1] += plane[1:]
    total[:, 1:] += plane[:, :-1]
    total[:, :-1] += plane[:, 1:]
    return total


def _count(table: np.ndarray, context: np.ndarray, values: np.ndarray) -> None:
    """Add what was seen; both symbols always keep a count of at least one."""
    seen = np.bincount(context * 2 + values, minlength=table.size).reshape(table.shape)
    # In halves: a first symbol counts twice as much as the even start.
    table += 2 * seen
    full = table.sum(axis=1) > _LIMIT
    table[full] = np.maximum(table[full] >> 1, 1)
