"""Clips to padded blocks in reader threads, equal blocks to full batches, batches to tokens.

The readers' queue has bounded memory. Every shape has one batch size, so that one compiled program
makes all its tokens; a batch that is not full is padded with black clips. Rows of a batch do not
influence each other, so tokens do not depend on what else is in the batch.
"""

import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pyratok_jax.data.padding import ClipSizes, Padding
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.decoding import with_back_off
from pyratok_jax.data.video.files import BrokenVideoError
from pyratok_jax.tokens.blocks import Block, cut_blocks, open_clip
from pyratok_jax.tokens.options import ExportOptions
from pyratok_jax.tokens.plan import Provenance, flip_key
from pyratok_jax.tokens.schema import TokenRecord, token_dtype

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import TokenizerLike
    from pyratok_jax.tokenizer.clips import Ids

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


Batch = list[ReadBlock]


class ShapeBatcher:
    """Collects blocks by their padded shape."""

    def __init__(self, options: ExportOptions) -> None:
        self._options = options
        self._open: OrderedDict[tuple[int, ...], Batch] = OrderedDict()

    def add(self, block: ReadBlock) -> Batch | None:
        """Take a block; the batch that it fills, if it does."""
        shape = block.padded.shape[:3]
        batch = self._open.setdefault(shape, [])
        batch.append(block)
        if len(batch) < self._options.batch_size(*shape):
            return None
        return self._open.pop(shape)

    def flush_fullest(self) -> Batch | None:
        """The largest batch so far, though it is not full; None when there is none."""
        if not self._open:
            return None
        return self._open.pop(max(self._open, key=lambda shape: self._bytes(self._open[shape])))

    def flush_shard(self, shard: int) -> Iterator[Batch]:
        """All batches that hold blocks of a shard."""
        for shape in [s for s, batch in self._open.items() if any(b.shard == shard for b in batch)]:
            yield self._open.pop(shape)

    @staticmethod
    def _bytes(batch: Batch) -> int:
        return sum(block.padded.nbytes for block in batch)


class Encoding:
    """Runs batches through a tokenizer in threads of its own, a bounded number at a time.

    On accelerators two run at once, so that one is transferred while the other is computed.
    """

    def __init__(
        self, tokenizer: "TokenizerLike", options: ExportOptions, provenance: Provenance
    ) -> None:
        import jax

        self._tokenizer, self._options, self._provenance = tokenizer, options, provenance
        self._at_once = 1 if jax.default_backend() == "cpu" else 2
        self._pool = ThreadPoolExecutor(self._at_once, "encode")
        self._running: deque[tuple[Batch, Future]] = deque()

    def submit(self, batch: Batch) -> None:
        """Begin with a batch; waits when enough are under way, see `full`."""
        self._running.append((batch, self._pool.submit(self._encode, batch)))

    @property
    def full(self) -> bool:
        """Whether a result has to be taken before the next batch."""
        return len(self._running) > self._at_once

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._running

    def results(self, wait: bool) -> Iterator[tuple[ReadBlock, TokenRecord]]:
        """Records of the batches that are done, oldest first; with `wait` at least one's."""
        while self._running and (wait or self._running[0][1].done()):
            batch, future = self._running.popleft()
            yield from zip(batch, future.result(), strict=True)
            wait = False

    def close(self) -> None:
        """Wait for what is under way and end."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _encode(self, batch: Batch) -> list[TokenRecord]:
        shape = batch[0].padded.shape
        video = np.zeros((self._options.batch_size(*shape[:3]), *shape), np.uint8)
        for row, block in enumerate(batch):
            video[row] = block.padded
        captions = [block.record.caption or None for block in batch]
        captions += [None] * (len(video) - len(batch))
        levels, read = self._levels(batch, video, captions)
        dtype = token_dtype(self._provenance.bits)

        def of_row(levels: "Ids", row: int) -> tuple[np.ndarray, ...]:
            return tuple(level[row].astype(dtype) for level in levels)

        return [
            token_record(block, of_row(levels, row), self._provenance, self._options.overlap,
                         of_row(read, row))
            for row, block in enumerate(batch)
        ]  # fmt: skip

    def _levels(
        self, batch: Batch, video: np.ndarray, captions: list[str | None]
    ) -> tuple["Ids", "Ids"]:
        """Ids (b, t, h, w) of every level, and what was read of them; () without flips."""
        o = self._options
        if not o.flip:
            return self._tokenizer.encode_padded(video, captions), ()
        from pyratok_jax.models.pyratok.flips import Flips

        keys = np.zeros((len(video), 2), np.uint32)
        for row, block in enumerate(batch):
            keys[row] = flip_key(o.flip_seed, block.record.id, block.block.number)
        return self._tokenizer.encode_flipped(video, captions, Flips(keys, o.flip))


def token_record(
    block: ReadBlock,
    tokens: tuple[np.ndarray, ...],
    provenance: Provenance,
    overlap: int = 0,
    read: tuple[np.ndarray, ...] = (),
) -> TokenRecord:
    """The record of a block; what only the end of its clip tells is left at 0."""
    r, p = block.record, block.padding
    return TokenRecord(
        tokens=tokens, id=r.id, video=r.id, path=r.path, caption=r.caption or "",
        text_encoder=provenance.text_encoder, code=provenance.code,
        checkpoint=provenance.checkpoint, fps=block.fps,
        start=-1.0 if r.start is None else r.start, end=-1.0 if r.end is None else r.end,
        block=block.block.number, blocks=0, first_frame=block.block.first_frame,
        top=block.block.top, left=block.block.left, overlap=overlap,
        frames=p.frames, height=p.height, width=p.width,
        padded_frames=p.padded_frames, padded_height=p.padded_height, padded_width=p.padded_width,
        video_frames=0, video_height=0, video_width=0, bits=provenance.bits,
        vocabulary=provenance.vocabulary, levels=len(tokens), read=read,
    )  # fmt: skip
