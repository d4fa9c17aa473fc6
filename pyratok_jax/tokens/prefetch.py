"""Reader threads: clips to padded blocks, in a queue whose memory is bounded."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pyratok_jax.data.padding import ClipSizes, Padding
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.decoding import with_back_off
from pyratok_jax.data.video.files import BrokenVideoError
from pyratok_jax.tokens.blocks import Block, cut_blocks, open_clip
from pyratok_jax.tokens.plan import ExportOptions

T = TypeVar("T")
_RETRIES, _FIRST_DELAY = 4, 1.0


@dataclass(frozen=True, eq=False)
class ReadBlock:
    """A block that is ready to be encoded: its shard, clip, place, and padded frames."""

    shard: int
    clip: int
    record: ClipRecord
    fps: float
    block: Block
    padded: np.ndarray
    padding: Padding


@dataclass(frozen=True)
class ClipEnd:
    """A clip was read: its blocks and size; or, with `reason`, it cannot be."""

    shard: int
    clip: int
    name: str
    path: str
    blocks: int = 0
    frames: int = 0
    height: int = 0
    width: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class ReaderFailure:
    """A reader stopped for a reason that is no clip's fault."""

    error: BaseException


class Budget:
    """Bytes that may be held; whoever wants more waits. One item always fits."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._closed = limit, 0, False
        self._change = threading.Condition()
        self.starved = 0

    def take(self, size: int) -> bool:
        """Wait for room; False when the work was stopped."""
        with self._change:
            self.starved += 1
            self._change.wait_for(
                lambda: self._closed or not self._used or self._used + size <= self._limit
            )
            self.starved -= 1
            self._used += size
            return not self._closed

    def give(self, size: int) -> None:
        """Bytes that are held no longer."""
        with self._change:
            self._used -= size
            self._change.notify_all()

    def close(self) -> None:
        """Wake all readers, so that they end."""
        with self._change:
            self._closed = True
            self._change.notify_all()


class Readers:
    """Threads that read clips in order and put blocks, ends and failures into `queue`.

    Args:
        records: the source.
        work: (shard, clip number) in order.
        options: how clips are cut.
        spatial_multiple: what sides are padded to.
        threads: how many.
        budget: of the frames held until the consumer gives them back.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        work: Iterator[tuple[int, int]],
        options: ExportOptions,
        spatial_multiple: int,
        threads: int,
        budget: Budget,
    ) -> None:
        self.queue: queue.SimpleQueue = queue.SimpleQueue()
        self._records, self._work, self._options = records, work, options
        self._sizes = ClipSizes(options.round_frames, options.round_sides or spatial_multiple)
        self._budget = budget
        self._next, self._stopped = threading.Lock(), False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether any thread still reads."""
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """End the threads."""
        self._stopped = True
        self._budget.close()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        try:
            while not self._stopped:
                with self._next:
                    item = next(self._work, None)
                if item is None:
                    return
                self._read(*item)
        except BaseException as error:  # The consumer has to hear of it, whatever it is.
            self.queue.put(ReaderFailure(error))

    def _read(self, shard: int, clip: int) -> None:
        name = path = f"clip {clip}"
        try:
            o = self._options
            record = self._patiently(lambda: self._records[clip])
            name, path = record.id, record.path
            stream = self._patiently(lambda: open_clip(record, o.fps, o.short_side))
            blocks = frames = height = width = 0
            for block in cut_blocks(stream.frames, o.window, o.tile, o.overlap):
                if not self._put(shard, clip, record, stream.fps, block):
                    return
                t, h, w = block.frames.shape[:3]
                blocks, frames = block.number + 1, block.first_frame + t
                height, width = max(height, block.top + h), max(width, block.left + w)
            self.queue.put(ClipEnd(shard, clip, name, path, blocks, frames, height, width))
        except BrokenVideoError as error:
            self.queue.put(ClipEnd(shard, clip, name, path, reason=error.reason))

    @staticmethod
    def _patiently(action: Callable[[], T]) -> T:
        """Remote files that cannot be reached are tried again."""
        return with_back_off(action, _RETRIES, _FIRST_DELAY)

    def _put(self, shard: int, clip: int, record: ClipRecord, fps: float, block: Block) -> bool:
        padded, padding = self._sizes.pad(block.frames)
        if not self._budget.take(padded.nbytes):
            return False
        place = Block(block.number, block.first_frame, block.top, block.left, block.frames[:0])
        self.queue.put(ReadBlock(shard, clip, record, fps, place, padded, padding))
        return True
