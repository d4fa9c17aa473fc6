"""Raw videos to shards of clips: cut, checked, filtered, assigned to buckets and stored.

The unit of work is a shard. Which clips a shard holds follows from hashes of their ids, and their
order from the ids, so that its bytes depend on the input and the options only: not on the runner,
the number of workers, or on how often the run was interrupted.
"""

import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, get_type_hints

import numpy as np

from pyratok_jax.data.buckets import assign_buckets, parse_buckets
from pyratok_jax.data.options import PrepareOptions
from pyratok_jax.data.sources.examples import encode_example
from pyratok_jax.data.sources.fingerprints import clip_identity
from pyratok_jax.data.sources.index import shape_of
from pyratok_jax.data.sources.payloads import MAX_MEDIA_BYTES, clip_frames, clip_payload
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.decoding import Decoder
from pyratok_jax.data.video.files import BrokenVideoError, VideoInfo
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json, text_bytes
from pyratok_jax.io.documents import checked
from pyratok_jax.io.sharded_job import Rejection, ShardedJob
from pyratok_jax.io.shards import ShardWriter


class ClipRow(TypedDict):
    """What a shard's report says of one stored clip.

    `seconds` is -1 for a still image; `caption` is the caption's length in characters, `bytes` the
    size of the record, `buckets` their names with commas between.
    """

    id: str
    buckets: str
    fps: float
    width: int
    height: int
    frames: int
    seconds: float
    caption: int
    bytes: int


def _dataclass_of(rows: type) -> type:
    """A dataclass with a TypedDict's fields: pydantic checks those from Python 3.12 on only."""
    return dataclasses.make_dataclass(rows.__name__, list(get_type_hints(rows).items()))


_ROWS = {"clips": _dataclass_of(ClipRow), "rejected": _dataclass_of(Rejection)}  # Of a report.


@dataclasses.dataclass(frozen=True)
class ClipShard:
    """One shard to write: its number, and the records whose clips it holds."""

    output: str
    options: PrepareOptions
    number: int
    records: tuple[ClipRecord, ...]

    @property
    def job(self) -> ShardedJob:
        """The dataset that the shard is part of."""
        return ShardedJob(self.output, self.options.name, self.options.format, self.options.shards)

    def key(self) -> str:
        """Hash of what the shard is made from, so that a changed input is not taken as done."""
        return self._key

    @functools.cached_property
    def _key(self) -> str:
        # Once, before clips are read: a file that is replaced meanwhile is noticed the next time.
        digest = hashlib.sha256(self.options.fingerprint().encode())
        for record in self.records:
            digest.update(clip_identity(record))
        return digest.hexdigest()[:16]

    def is_done(self) -> bool:
        """Whether the shard was already written from the same records with the same options."""
        return self.job.is_done(self.number, self.key())

    def withdraw_if_damaged(self, *, compare: bool) -> bool:
        """Have the shard written again where it is done, but it or its report is damaged.

        Args:
            compare: read the shard whole, and compare it with what was written.
        """
        key = self.key()
        report = self.job.finished_report(self.number, key)
        if report is None:
            return False
        try:
            for name, row in _ROWS.items():
                for entry in checked(report.get(name), list[dict[str, Json]], "its report"):
                    checked(entry, row, "its report")
            damaged = compare and not self.job.is_intact(self.number, key)
        except UserError:
            damaged = True
        if damaged:
            self.job.withdraw(self.number)
        return damaged


def plan_shards(
    records: Sequence[ClipRecord], output: str, options: PrepareOptions
) -> list[ClipShard]:
    """Every record in its shard, by a hash of its id; within a shard sorted by id."""
    members: list[list[ClipRecord]] = [[] for _ in range(options.shards)]
    for record in records:
        digest = hashlib.sha256(text_bytes(record.id)).digest()
        members[int.from_bytes(digest[:8], "big") % options.shards].append(record)
    return [
        ClipShard(output, options, number, tuple(sorted(clips, key=lambda r: (r.id, r.path))))
        for number, clips in enumerate(members)
    ]


def write_shard(shard: ClipShard) -> int:
    """Write one shard and its report, unless both are there: the number of clips it holds."""
    finished = shard.job.finished_report(shard.number, shard.key())
    if finished is not None:
        return len(finished["clips"])
    clips: list[ClipRow] = []
    rejected: list[Rejection] = []
    decoder = Decoder(shard.options.time_limit)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / shard.job.shard_name(shard.number)
        with ShardWriter(local, shard.options.format) as writer:
            for record in shard.records:
                for row, data in _clips_of(record, shard.options, decoder, rejected):
                    writer.write(data)
                    clips.append(row)
        report = {"clips": clips, "rejected": rejected}
        shard.job.publish(shard.number, local, report, key=shard.key())
    return len(clips)


def _clips_of(
    record: ClipRecord, options: PrepareOptions, decoder: Decoder, rejected: list[Rejection]
) -> list[tuple[ClipRow, bytes]]:
    """The serialised clips of one record; what is left out goes to `rejected` with the reason."""
    try:
        info = _info(record, decoder)
        if record.stored is not None:
            # Its frames are the whole clip; seconds of the file that they came from are no use.
            seconds = None if record.still else info.seconds
            record = dataclasses.replace(record, start=None, end=None, seconds=seconds)
        spans = _spans(record, info.seconds, options)
    except BrokenVideoError as error:
        rejected.append(_rejection(record, f"broken: {error.reason}"))
        return []
    reason = _refusal(info.height, info.width, options)
    kept = []
    for number, (start, end) in enumerate(spans):
        clip = _part(record, start, end, info.fps)
        if len(spans) > 1:
            clip = dataclasses.replace(clip, id=f"{record.id}#{number:03d}")
        length = (info.seconds if end is None else end) - (start or 0.0)
        why = reason or (None if record.still else _wrong_length(length, options))
        if why is None:
            try:
                kept.append(_encode(clip, info, options, decoder))
                continue
            except BrokenVideoError as error:
                why = f"broken: {error.reason}"
        rejected.append(_rejection(clip, why))
    return kept


def _info(record: ClipRecord, decoder: Decoder) -> VideoInfo:
    """As the file's header says, or as the stored frames are. Raises: BrokenVideoError."""
    if record.stored is None:
        return decoder.probe(record.media)
    shape, frames = shape_of(record, decoder), len(record.stored)
    return VideoInfo(record.path, frames, shape.fps, shape.height, shape.width, frames / shape.fps)


def _part(record: ClipRecord, start: float | None, end: float | None, fps: float) -> ClipRecord:
    """The seconds [start, end) of a record: of a file, or those of its stored frames."""
    if record.stored is None or start is None or end is None:
        return dataclasses.replace(record, start=start, end=end)
    # Frame n begins at n / fps; sums of parts are exact to far less than a millionth of a frame.
    first, stop = (int(np.ceil(seconds * fps - 1e-6)) for seconds in (start, end))
    first = min(first, len(record.stored) - 1)
    frames = record.stored[first : max(stop, first + 1)]
    return dataclasses.replace(record, stored=frames, seconds=len(frames) / fps)


def _rejection(record: ClipRecord, reason: str) -> Rejection:
    return {"id": record.id, "path": record.path, "reason": reason}


def _spans(
    record: ClipRecord, seconds: float, options: PrepareOptions
) -> list[tuple[float | None, float | None]]:
    """Cut points: equal parts of at most `clip_seconds`; the whole file is (None, None)."""
    start, end = record.start or 0.0, min(record.end or seconds, seconds)
    if end <= start:
        reason = f"the clip starts at {start:g} s, but the file ends at {seconds:g} s"
        raise BrokenVideoError(record.path, reason)
    parts = 1
    if options.clip_seconds > 0 and not record.still:
        parts = max(int(np.ceil((end - start) / options.clip_seconds - 1e-6)), 1)
    if parts == 1 and record.start is None and record.end is None:
        return [(None, None)]
    edges = np.linspace(start, end, parts + 1)
    return [(float(a), float(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _refusal(height: int, width: int, options: PrepareOptions) -> str | None:
    if min(height, width) < options.min_side:
        return f"resolution: {width}x{height} is below {options.min_side} on the short side"
    aspect = max(height, width) / min(height, width)
    if options.max_aspect and aspect > options.max_aspect:
        return f"aspect: {aspect:.2f} is above {options.max_aspect:g}"
    return None


def _wrong_length(seconds: float, options: PrepareOptions) -> str | None:
    if seconds < options.min_seconds:
        return f"duration: {seconds:.2f} s is below {options.min_seconds:g} s"
    if options.max_seconds and seconds > options.max_seconds:
        return f"duration: {seconds:.2f} s is above {options.max_seconds:g} s"
    return None


def _encode(
    clip: ClipRecord, info: VideoInfo, options: PrepareOptions, decoder: Decoder
) -> tuple[ClipRow, bytes]:
    fps = info.fps
    if clip.stored is None:
        frames = decoder.count(clip.media, clip.start, clip.end)
    else:
        frames = sum(1 for _ in clip_frames(clip))  # All of them can be read.
    payload = clip_payload(
        clip, (info.height, info.width), options.store, options.height, options.crf, options.quality
    )
    if sum(map(len, payload.media)) > MAX_MEDIA_BYTES:
        raise BrokenVideoError(clip.path, "the clip is too large for a record; cut it shorter")
    if options.store == "frames":
        frames = len(payload.media)
    elif payload.start is None and clip.start is not None:  # Encoded at a constant rate.
        frames = decoder.count(payload.media[0])
    still = clip.still
    span = float("inf") if still else frames / fps
    heights, widths, spans, rates = (
        np.array([float(v)]) for v in (payload.height, payload.width, span, fps)
    )
    buckets = parse_buckets(options.buckets)
    fits = assign_buckets(buckets, heights, widths, spans, rates)[0]
    names = ",".join(b.name for b, fit in zip(buckets, fits, strict=True) if fit)
    values = {
        "id": clip.id,
        "caption": clip.caption,
        "path": clip.path,
        "buckets": names,
        "start": payload.start,
        "end": payload.end,
        "seconds": None if still else span if payload.seconds is None else payload.seconds,
        "fps": fps,
        "width": payload.width,
        "height": payload.height,
        "frames": frames,
    }
    data = encode_example(values, payload.media)
    row = ClipRow(
        id=clip.id, buckets=names, fps=fps, width=payload.width, height=payload.height,
        frames=frames, seconds=-1.0 if still else span, caption=len(clip.caption or ""),
        bytes=len(data),
    )  # fmt: skip
    return row, data
