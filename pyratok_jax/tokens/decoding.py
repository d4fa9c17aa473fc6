"""Token records back to videos, one window at a time."""

import contextlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyratok_jax.data.video.files import is_image
from pyratok_jax.data.video.writer import VideoWriter, size_refused
from pyratok_jax.errors import UserError, is_out_of_memory, short
from pyratok_jax.tokenizer import EncodedClip, TokenizerLike
from pyratok_jax.tokens.blocks import WindowJoiner
from pyratok_jax.tokens.outputs import (
    FrameFolder,
    OutputExistsError,
    StillWriter,
    Taken,
    check_free,
    output_path,
)
from pyratok_jax.tokens.schema import DamagedRecordError, TokenRecord

_AHEAD = 2
# Longer gaps are named and left out: a record's numbers must not decide how much is written.
_MOST_BLACK_FRAMES = 10_000
_MOST_BLACK_PIXELS, _BLACK_SHARE = 1 << 27, 1000  # Of a video, and of the pixels that are there.
# So many records of another checkpoint, and none of this one, are a mistake of the user.
_HOPELESS = 25
_NO_MEMORY = "the memory is not enough to decode it"


@dataclass
class Outcome:
    """What became of a job.

    Attributes:
        videos: written files and folders, by the video's id.
        bad: messages about what could not be read.
        seen: ids of videos that were asked for and met.
        ended: frames of the videos that end before the first frame that was asked for, by id.
        frames: number of frames written.
        taken: all paths that were begun.
    """

    videos: dict[str, Path] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    ended: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    taken: Taken = field(default_factory=Taken)


@dataclass(frozen=True)
class Selection:
    """Which videos (empty: all) and which of their frames."""

    ids: frozenset[str] = frozenset()
    first: int = 0
    stop: int | None = None

    def names(self, record: TokenRecord) -> bool:
        """Whether a block is of a wanted video."""
        return not self.ids or record.video in self.ids

    def wants(self, record: TokenRecord) -> bool:
        """Whether a block is of a wanted video and holds a wanted frame."""
        stop = record.first_frame + 1 if self.stop is None else self.stop
        return self.names(record) and record.first_frame + record.frames > self.first and (
            record.first_frame < stop
        )  # fmt: skip


def parse_frames(text: str) -> tuple[int, int | None]:
    """`a:b` as first frame and end, either of which may be missing.

    Raises:
        UserError: not of that form, or empty.
    """
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if match is None:
        raise UserError(f"--frames {text} is not of the form FIRST:END, for example 0:17")
    first, stop = int(match.group(1) or 0), int(match.group(2)) if match.group(2) else None
    if stop is not None and stop <= first:
        raise UserError(f"--frames {text} holds no frame")
    return first, stop


def check_maker(record: TokenRecord, tokenizer: TokenizerLike, advice: str) -> None:
    """Refuse tokens of another tokenizer.

    Args:
        record: the tokens.
        tokenizer: what is to decode them.
        advice: the end of the message where sizes fit, but the checkpoint is another one.

    Raises:
        UserError: other levels or bits, or (unless `advice` is empty) another checkpoint.
    """
    config, what = tokenizer.config, f"the tokens of {short(record.id)}"
    if record.bits != config.bits or record.levels != len(config.grids):
        raise UserError(
            f"{what} have {record.levels} levels of {record.bits} bits, the "
            f"checkpoint {len(config.grids)} of {config.bits}; use the one that they were made with"
        )
    if advice and record.checkpoint != tokenizer.checkpoint_hash:
        raise UserError(
            f"{what} were made by checkpoint {record.checkpoint[:16] or '-'}, "
            f"not by {tokenizer.checkpoint_hash[:16] or '-'}; {advice}"
        )


def check_origin(record: TokenRecord, tokenizer: TokenizerLike, force: bool) -> None:
    """Refuse to decode tokens that this tokenizer did not make.

    Raises:
        UserError: another checkpoint, and not forced; sizes that do not fit at all; or levels that
            belong to flipped coarser ones (`TokenRecord.read`).
    """
    check_maker(record, tokenizer, "" if force else "give that one, or --force")
    if record.read:
        raise UserError(
            f"the tokens of {short(record.id)} are targets for training a prior, each level's "
            "after flips of the coarser ones, and make no one video; export them again without "
            "--flip"
        )


def mismatch(record: TokenRecord, tokenizer: TokenizerLike) -> str | None:
    """What of a record does not fit the tokenizer, None where it can be decoded."""
    padding, config = record.padding, tokenizer.config
    size = padding.padded_frames, padding.padded_height, padding.padded_width
    if (size[0] - 1) % config.vae.temporal_factor or any(
        side % config.spatial_multiple for side in size[1:]
    ):
        return f"a padded size of {size} is none of the tokenizer's"
    for number, (stride, level) in enumerate(zip(config.grids, record.tokens, strict=True), 1):
        expected = 1 + (size[0] - 1) // stride[0], size[1] // stride[1], size[2] // stride[1]
        if level.shape != expected:
            return f"level {number} has a grid of {level.shape}, expected {expected}"
        if int(level.max()) >= config.vocabulary_size:
            return f"level {number} holds an id of {level.max()}, beyond the vocabulary"
    return None


def decode_all(
    items: Iterable[TokenRecord | DamagedRecordError],
    tokenizer: TokenizerLike,
    folder: Path,
    selection: Selection,
    *,
    crf: int | None = 12,
    force: bool = False,
    advance: Callable[[int], None] = lambda frames: None,
) -> Outcome:
    """Write all selected videos below `folder`.

    Args:
        items: records in order, as `reader.read_all` gives them.
        tokenizer: a `tokenizer.Tokenizer`.
        folder: created when needed.
        selection: what to decode.
        crf: quality of the mp4 files; None: frames as PNG files instead.
        force: also decode tokens of another checkpoint.
        advance: told the number of frames whenever some are written.

    Raises:
        UserError: see `check_origin`.
    """
    outcome = Outcome()
    records = _good(outcome, items, force, selection, tokenizer)
    video: _Video | None = None
    refused: str | None = None
    try:
        for record, frames in _decoded(records, tokenizer):
            if record.video == refused:
                continue
            if frames is None:
                outcome.bad.append(f"{short(record.id)}: {_NO_MEMORY}; it is left out")
                continue
            if video is None or video.record.video != record.video:
                if video is not None:
                    video.close(outcome, advance)
                    video = None
                try:
                    video = _Video(record, folder, selection, crf, outcome)
                except OutputExistsError as error:
                    refused = record.video
                    outcome.bad.append(f"{short(record.video)}: {error}")
                    continue
            problem = video.misfit(record)
            if problem is None and not video.add(record, frames, advance):
                problem = _NO_MEMORY
            if problem is not None:
                outcome.bad.append(f"{short(record.id)}: {problem}; it is left out")
        if video is not None:
            video.close(outcome, advance)
    except BaseException:
        if video is not None:
            video.abandon()
        raise
    return outcome


def _good(
    outcome: Outcome,
    items: Iterable[TokenRecord | DamagedRecordError],
    force: bool,
    selection: Selection,
    tokenizer: TokenizerLike,
) -> Iterator[TokenRecord]:
    fitting, foreign = 0, list[UserError]()
    for item in items:
        if isinstance(item, DamagedRecordError):
            outcome.bad.append(f"{item.where}: {item.reason}")
            continue
        outcome.seen |= {item.video} & selection.ids
        try:
            check_origin(item, tokenizer, force)
        except UserError as error:  # Of one record, or of the dataset?
            foreign.append(error)
            if not fitting and len(foreign) >= _HOPELESS:
                raise
            outcome.bad.append(f"{error}; it is left out")
            continue
        fitting += 1
        problem = mismatch(item, tokenizer)
        if problem is not None:
            outcome.bad.append(f"{short(item.id)}: {problem}; it is left out")
        elif selection.wants(item):
            yield item
        elif selection.names(item) and item.video_frames <= selection.first:
            outcome.ended[item.video] = item.video_frames
    if foreign and not fitting:
        raise foreign[0]


def _decoded(
    records: Iterator[TokenRecord], tokenizer: TokenizerLike
) -> Iterator[tuple[TokenRecord, np.ndarray | None]]:
    """Records with their cropped frames; the next one is decoded while one is written.

    None in place of the frames for which the memory is not enough.
    """

    def decode(record: TokenRecord) -> np.ndarray | None:
        ids = tuple(level.astype(np.uint32) for level in record.tokens)
        try:
            return tokenizer.decode(EncodedClip(ids, record.padding, record.bits))
        except Exception as error:
            if is_out_of_memory(error):
                return None
            raise

    with ThreadPoolExecutor(1) as pool:
        ahead: deque = deque()
        for record in records:
            ahead.append((record, pool.submit(decode, record)))
            if len(ahead) >= _AHEAD:
                record, future = ahead.popleft()
                yield record, future.result()
        for record, future in ahead:
            yield record, future.result()


class _Video:
    """One video while it is written; what is missing of it stays black and is named."""

    def __init__(
        self,
        record: TokenRecord,
        folder: Path,
        selection: Selection,
        crf: int | None,
        outcome: Outcome,
    ) -> None:
        self.record, self._selection = record, selection
        self._stop = min(selection.stop or record.video_frames, record.video_frames)
        self._next = self._first = min(selection.first, record.video_frames)
        self._blocks: set[int] = set()
        self._black, self._pixels = 0, 0  # Written in place of what is missing; decoded.
        self._joiner: WindowJoiner | None = None
        self._window = (0, 0)
        still = record.video_frames == 1 and is_image(record.path)
        path = output_path(folder, record.video, still, crf, outcome.taken)
        check_free(folder, path)
        reason = size_refused(record.video_height, record.video_width)
        if reason is not None and crf is not None and not still:
            raise OutputExistsError(f"{reason}; use --png")
        outcome.taken.add(path)
        self._outcome = outcome
        self._stack = contextlib.ExitStack()
        self._sink: VideoWriter | FrameFolder | StillWriter
        if still:
            self._sink = StillWriter(path)
        elif crf is None:
            self._sink = FrameFolder(path, self._first)
        else:
            self._sink = VideoWriter(path, fps=record.fps, crf=crf)
        self._stack.enter_context(self._sink)

    def misfit(self, record: TokenRecord) -> str | None:
        """What contradicts the video's first block or the order of blocks, None for none."""
        for name in ("video_frames", "video_height", "video_width", "fps", "blocks", "path"):
            first, other = getattr(self.record, name), getattr(record, name)
            if first != other:
                return f"{name} is {other}, but {first} in the video's first block"
        if record.block in self._blocks:
            return f"its block {record.block} comes twice"
        span = record.first_frame, record.first_frame + record.frames
        if self._joiner is not None and span != self._window and span[0] < self._window[1]:
            return f"its frames {span[0]} .. {span[1] - 1} come twice or out of order"
        return None

    def add(self, record: TokenRecord, frames: np.ndarray, advance: Callable[[int], None]) -> bool:
        """One decoded block; blocks come in order. False where the memory is not enough."""
        span = record.first_frame, record.first_frame + record.frames
        if self._joiner is None or span != self._window:
            self._flush(advance)
            self._joiner = WindowJoiner(record.frames, record.video_height, record.video_width)
            self._window = span
        try:
            self._joiner.add(frames, record.top, record.left, record.overlap)
        except MemoryError:
            return False
        self._blocks.add(record.block)
        self._pixels += frames.size // 3
        return True

    def _flush(self, advance: Callable[[int], None]) -> None:
        if self._joiner is None:
            return
        self._fill(self._window[0], advance)
        frames = self._joiner.frames()
        low = max(self._first - self._window[0], 0)
        high = max(self._stop - self._window[0], 0)
        self._write(frames[low:high], advance)
        self._joiner = None

    def _fill(self, until: int, advance: Callable[[int], None]) -> None:
        """Black frames in the place of missing windows."""
        missing = min(until, self._stop) - self._next
        self._black += max(missing, 0) * self.record.video_height * self.record.video_width
        most = _MOST_BLACK_PIXELS + _BLACK_SHARE * self._pixels
        if missing > _MOST_BLACK_FRAMES or (missing > 0 and self._black > most):
            self._outcome.bad.append(
                f"{short(self.record.video)}: {missing} frames from {self._next} on are missing; "
                "they are too many, and left out, not black"
            )
        elif missing > 0:
            black = np.zeros((1, self.record.video_height, self.record.video_width, 3), np.uint8)
            for _ in range(missing):
                self._write(black, advance)

    def _write(self, frames: np.ndarray, advance: Callable[[int], None]) -> None:
        for frame in frames:
            self._sink.write(frame)
        self._next += len(frames)
        advance(len(frames))

    def close(self, outcome: Outcome, advance: Callable[[int], None]) -> None:
        """Write the remaining frames, and rename the file into place."""
        self._flush(advance)
        self._fill(self._stop, advance)
        self._stack.close()
        missing = self.record.blocks - len(self._blocks)
        if missing > 0 and self._selection.first == 0 and self._selection.stop is None:
            outcome.bad.append(
                f"{short(self.record.video)}: {missing} of {self.record.blocks} blocks are "
                f"missing; they are black in {self._sink.path}"
            )
        outcome.videos[self.record.video] = self._sink.path
        outcome.frames += self._next - self._first

    def abandon(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(_Abandoned), self._stack:
            raise _Abandoned


class _Abandoned(Exception):
    """Tells the writers that their files are not to appear."""
