"""Blocks of equal shape to full batches, and batches to tokens.

Every shape has one batch size, so that one compiled program makes all its tokens; a batch that is
not full is padded with black clips. Rows of a batch do not influence each other, so tokens do
not depend on what else is in the batch.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from pyratok_jax.tokens.plan import ExportOptions, Provenance
from pyratok_jax.tokens.prefetch import ReadBlock
from pyratok_jax.tokens.schema import TokenRecord, token_dtype

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import TokenizerLike

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
        levels = self._tokenizer.encode_padded(video, captions)
        dtype = token_dtype(self._provenance.bits)
        return [
            token_record(block, tuple(level[row].astype(dtype) for level in levels),
                         self._provenance, self._options.overlap)
            for row, block in enumerate(batch)
        ]  # fmt: skip


def token_record(
    read: ReadBlock, tokens: tuple[np.ndarray, ...], provenance: Provenance, overlap: int = 0
) -> TokenRecord:
    """The record of a block; what only the end of its clip tells is left at 0."""
    r, p = read.record, read.padding
    return TokenRecord(
        tokens=tokens, id=r.id, video=r.id, path=r.path, caption=r.caption or "",
        text_encoder=provenance.text_encoder, code=provenance.code,
        checkpoint=provenance.checkpoint, fps=read.fps,
        start=-1.0 if r.start is None else r.start, end=-1.0 if r.end is None else r.end,
        block=read.block.number, blocks=0, first_frame=read.block.first_frame,
        top=read.block.top, left=read.block.left, overlap=overlap,
        frames=p.frames, height=p.height, width=p.width,
        padded_frames=p.padded_frames, padded_height=p.padded_height, padded_width=p.padded_width,
        video_frames=0, video_height=0, video_width=0, bits=provenance.bits,
        vocabulary=provenance.vocabulary, levels=len(tokens),
    )  # fmt: skip
