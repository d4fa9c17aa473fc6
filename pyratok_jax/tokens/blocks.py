"""From a clip to the blocks that are encoded, and from decoded blocks back to frames.

A video is cut into windows of a fixed number of frames (the last may be shorter) and, if asked
for, every window into square tiles. A block is a clip in its own right: it is padded, encoded and
decoded alone. Windows do not overlap. Tiles overlap, and are blended linearly when they are joined.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pyratok_jax.data.padding import cut_windows
from pyratok_jax.data.sources.payloads import clip_frames
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import (
    BrokenVideoError,
    clock_of,
    iter_span,
    resize_image,
)
from pyratok_jax.data.video.timeline import resampled


@dataclass(frozen=True)
class ClipStream:
    """Frames uint8 (height, width, 3), read once, and their rate."""

    frames: Iterator[np.ndarray]
    fps: float


def open_clip(record: ClipRecord, fps: float = 0.0, short_side: int = 0) -> ClipStream:
    """Begin to read a clip.

    Args:
        record: which.
        fps: frames per second to keep: the frame shown at each n / fps; 0, or a rate that the clip
            does not reach: all frames.
        short_side: pixels that the shorter side is shrunk to; 0: never.

    Raises:
        BrokenVideoError: unreadable; also later, while frames are taken from the stream, and when
            the clip has no frame or frames of several sizes.
    """
    own, margin = record.stored_fps, 0.0
    video = record.stored is None and not record.still
    if video:
        own, margin = clock_of(record.media)
    frames = clip_frames(record)
    if not fps or fps >= own:
        return ClipStream(_uniform(frames, record.path, short_side), own)
    timed: Iterator[tuple[float, np.ndarray]]
    timed = ((number / own, frame) for number, frame in enumerate(frames))
    if video:
        timed = iter_span(record.media, record.start, record.end)
    kept = resampled(timed, fps, margin, 1 / own)
    return ClipStream(_uniform(kept, record.path, short_side), fps)


def _uniform(frames: Iterator[np.ndarray], path: str, short_side: int) -> Iterator[np.ndarray]:
    shape: tuple[int, ...] | None = None
    for frame in frames:
        if shape is None:
            shape = frame.shape
            target = _target(shape[0], shape[1], short_side)
        if frame.shape != shape:
            raise BrokenVideoError(path, f"its frames change size: {shape} to {frame.shape}")
        yield frame if target == shape[:2] else resize_image(frame, target)
    if shape is None:
        raise BrokenVideoError(path, "it holds no frame")


def _target(height: int, width: int, short_side: int) -> tuple[int, int]:
    if not short_side or min(height, width) <= short_side:
        return height, width
    scale = short_side / min(height, width)
    return max(round(height * scale), short_side), max(round(width * scale), short_side)


@dataclass(frozen=True, eq=False)
class Block:
    """One block of a video: where it begins, and its frames, uint8 (t, h, w, 3)."""

    number: int
    first_frame: int
    top: int
    left: int
    frames: np.ndarray


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side; all have the full length, the last ends with the side.

    A `tile` of 0, or one that is not shorter than the side, gives one tile.
    """
    if not tile or size <= tile:
        return [0]
    step = tile - overlap
    return [*range(0, size - tile, step), size - tile]


def cut_blocks(
    frames: Iterable[np.ndarray], window: int, tile: int = 0, overlap: int = 0
) -> Iterator[Block]:
    """Blocks in order of time, then rows, then columns; one window of frames is held in memory.

    Args:
        frames: uint8 (h, w, 3), all of one size.
        window: frames per window.
        tile: side of a tile in pixels; 0: whole frames.
        overlap: pixels that neighbouring tiles share, less than `tile`.
    """
    number = first = 0
    for stacked in cut_windows(frames, window):
        for block in cut_tiles(stacked, tile, overlap, first, number):
            yield block
            number += 1
        first += len(stacked)


def cut_tiles(
    window: np.ndarray, tile: int, overlap: int, first: int = 0, number: int = 0
) -> Iterator[Block]:
    """The blocks of one window, by rows, then columns.

    Args:
        window: uint8 (t, h, w, 3).
        tile, overlap: as for `cut_blocks`.
        first: frame of the video that the window begins with.
        number: of its first block.
    """
    height, width = window.shape[1:3]
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            side = tile or max(height, width)
            yield Block(number, first, top, left, window[:, top : top + side, left : left + side])
            number += 1


class WindowJoiner:
    """Puts the decoded tiles of one window together.

    In the overlaps tiles are averaged with weights that fall linearly towards their edges; a
    window of one tile is given back as it is.
    """

    def __init__(self, frames: int, height: int, width: int) -> None:
        self._shape = (frames, height, width, 3)
        self._single: np.ndarray | None = None
        self._sum: np.ndarray | None = None
        self._weight = np.zeros((height, width, 1), np.float32)
        self.filled = False

    def add(self, tile: np.ndarray, top: int, left: int, overlap: int) -> None:
        """One tile, uint8 (t, h, w, 3), at its place."""
        self.filled = True
        if tile.shape == self._shape:
            self._single = tile
            return
        if self._sum is None:
            self._sum = np.zeros(self._shape, np.float32)
        rows, columns = (_ramp(side, overlap) for side in tile.shape[1:3])
        weight = np.outer(rows, columns)[..., None].astype(np.float32)
        area = slice(top, top + tile.shape[1]), slice(left, left + tile.shape[2])
        self._sum[:, *area] += tile * weight
        self._weight[area] += weight

    def frames(self) -> np.ndarray:
        """The window, uint8 (t, h, w, 3); pixels of missing tiles are black."""
        if self._single is not None:
            return self._single
        if self._sum is None:
            return np.zeros(self._shape, np.uint8)
        return np.rint(self._sum / np.maximum(self._weight, 1e-9)).astype(np.uint8)


def _ramp(side: int, overlap: int) -> np.ndarray:
    place = np.arange(side)
    distance = np.minimum(place, place[::-1]) + 1
    return np.minimum(distance / (overlap + 1), 1.0)
