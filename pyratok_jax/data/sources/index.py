"""What is known about each clip before training: shape, length, and whether it opens at all."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.decoding import Decoder
from pyratok_jax.data.video.files import BrokenVideoError, read_image


@dataclass(frozen=True)
class Shape:
    """A clip's height and width in pixels, its seconds (infinite: a still image), its rate."""

    height: int
    width: int
    seconds: float
    fps: float


@dataclass(frozen=True)
class ClipIndex:
    """Parallel columns over the readable clips of a source.

    `number` (n,) is their position in the source; `height`, `width`, `seconds` and `fps` are as
    in `Shape`. `broken` lists (path, reason) of the others.
    """

    number: np.ndarray
    height: np.ndarray
    width: np.ndarray
    seconds: np.ndarray
    fps: np.ndarray
    broken: tuple[tuple[str, str], ...]

    def shapes(self) -> dict[int, Shape]:
        """By position in the source."""
        columns = zip(self.number, self.height, self.width, self.seconds, self.fps, strict=True)
        return {int(n): Shape(int(h), int(w), float(s), float(f)) for n, h, w, s, f in columns}


def index_clips(records: Sequence[ClipRecord], decoder: Decoder, threads: int = 4) -> ClipIndex:
    """Read the header of every clip that does not state its size, length and rate itself.

    A source that brings its own index (`clip_index` of `shards.ShardRecords`) is not read at all.
    """
    own = getattr(records, "clip_index", None)
    if isinstance(own, ClipIndex):
        return own
    numbers = range(len(records))

    def measure(number: int) -> Shape | BrokenVideoError:
        try:
            return shape_of(records[number], decoder)
        except BrokenVideoError as error:
            return error

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        rows = list(pool.map(measure, numbers))
    good = [(i, row) for i, row in enumerate(rows) if isinstance(row, Shape)]
    return ClipIndex(
        np.array([i for i, _ in good], np.int64),
        np.array([shape.height for _, shape in good], np.float64),
        np.array([shape.width for _, shape in good], np.float64),
        np.array([shape.seconds for _, shape in good], np.float64),
        np.array([shape.fps for _, shape in good], np.float64),
        tuple((r.path, r.reason) for r in rows if isinstance(r, BrokenVideoError)),
    )


def shape_of(record: ClipRecord, decoder: Decoder) -> Shape:
    """As the record states it, else from the file's header.

    Raises:
        BrokenVideoError: the file does not open, or ends before the clip begins.
    """
    if record.stored is not None:
        frames = len(record.stored)
        height, width = record.height, record.width
        if not height or not width:
            height, width = read_image(record.stored[0]).shape[:2]
        fps = record.stored_fps
        return Shape(height, width, float("inf") if record.still else frames / fps, fps)
    still = record.still
    if record.height and record.width and (still or (record.span and record.fps)):
        seconds = float("inf") if still else record.span or 0.0
        return Shape(record.height, record.width, seconds, record.fps or 1.0)
    info = decoder.probe(record.media)
    start = record.start or 0.0
    end = info.seconds if record.end is None else min(record.end, info.seconds)
    if end <= start:
        reason = f"the clip starts at {start:g} s, but the file ends at {info.seconds:g} s"
        raise BrokenVideoError(record.path, reason)
    return Shape(info.height, info.width, float("inf") if still else end - start, info.fps)
