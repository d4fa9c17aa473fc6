"""Raw videos to shards: cut, checked, filtered, assigned to buckets, written once and for all.

The unit of work is a shard. Which clips a shard holds follows from hashes of their ids, and their
order from the ids, so that its bytes depend on the input and the options only: not on the runner,
the number of workers, or on how often the run was interrupted. A finished shard leaves a report
beside it; a later run does only the shards that have none.
"""

import collections
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from pyratok_jax.data.buckets import assign_buckets, parse_buckets
from pyratok_jax.data.shard_writing import (
    ShardWriter,
    publish,
    shard_name,
    write_text,
    write_tfds_metadata,
)
from pyratok_jax.data.sources.examples import (
    FLOAT_KEYS,
    INT_KEYS,
    MEDIA_KEY,
    TEXT_KEYS,
    encode_example,
)
from pyratok_jax.data.sources.payloads import clip_payload
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.sources.shards import INDEX_FILE
from pyratok_jax.data.video.decoding import Decoder
from pyratok_jax.data.video.files import BrokenVideoError, is_image
from pyratok_jax.errors import UserError

REPORTS = "reports"
REJECTED, STATISTICS = "rejected.jsonl", "statistics.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is kept and how it is stored; the shards depend on these and the input alone.

    `store` is "bytes" (the compressed stream as it is), "reencode" (H.264) or "frames" (JPEG).
    `clip_seconds` cuts longer videos (0: not at all). `height` shrinks the short side when frames
    or re-encoded video are stored (0: not). The rest are filters.
    """

    name: str = "clips"
    format: str = "array_record"
    shards: int = 16
    store: str = "bytes"
    height: int = 0
    crf: int = 20
    quality: int = 95
    clip_seconds: float = 0.0
    min_side: int = 0
    min_seconds: float = 0.0
    max_seconds: float = 0.0
    max_aspect: float = 0.0
    buckets: tuple[str, ...] = ("17x256x256",)
    time_limit: float = 120.0

    def fingerprint(self) -> str:
        """Short hash of everything that decides the shards' content."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One shard to write: its number, and the records whose clips it holds."""

    output: str
    options: Options
    number: int
    records: tuple[ClipRecord, ...]

    @property
    def name(self) -> str:
        """The file's name, as TFDS expects it."""
        o = self.options
        return shard_name(o.name, o.format, self.number, o.shards)

    @property
    def report(self) -> epath.Path:
        """Where the shard's report lies."""
        return epath.Path(self.output) / REPORTS / f"{self.number:05d}.json"

    def key(self) -> str:
        """Hash of what the shard is made from, so that a changed input is not taken as done."""
        parts = [f"{r.id}\0{r.path}\0{r.caption}\0{r.start}\0{r.end}" for r in self.records]
        text = self.options.fingerprint() + "\n".join(parts)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan_shards(records: Sequence[ClipRecord], output: str, options: Options) -> list[ShardJob]:
    """Every record in its shard, by a hash of its id; within a shard sorted by id."""
    members: list[list[ClipRecord]] = [[] for _ in range(options.shards)]
    for record in records:
        digest = hashlib.sha256(record.id.encode()).digest()
        members[int.from_bytes(digest[:8], "big") % options.shards].append(record)
    return [
        ShardJob(output, options, number, tuple(sorted(clips, key=lambda r: (r.id, r.path))))
        for number, clips in enumerate(members)
    ]


def is_done(job: ShardJob) -> bool:
    """Whether the shard was already written from the same records with the same options."""
    target = epath.Path(job.output) / job.name
    if not (job.report.exists() and target.exists()):
        return False
    try:
        return json.loads(job.report.read_text()).get("key") == job.key()
    except ValueError:
        return False


def write_shard(job: ShardJob) -> int:
    """Write one shard and its report, unless both are there: the number of clips it holds."""
    if is_done(job):
        return len(json.loads(job.report.read_text())["clips"])
    clips: list[dict[str, Any]] = []
    rejected: list[dict[str, str]] = []
    decoder = Decoder(job.options.time_limit)
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / job.name
        with ShardWriter(local, job.options.format) as writer:
            for record in job.records:
                for row, data in _clips_of(record, job.options, decoder, rejected):
                    writer.write(data)
                    clips.append(row | {"bytes": len(data)})
        publish(local, epath.Path(job.output) / job.name)
    report = {"key": job.key(), "clips": clips, "rejected": rejected}
    write_text(job.report, json.dumps(report, indent=1))
    return len(clips)


def _clips_of(
    record: ClipRecord, options: Options, decoder: Decoder, rejected: list[dict[str, str]]
) -> list[tuple[dict[str, Any], bytes]]:
    """The serialised clips of one record; what is left out goes to `rejected` with the reason."""
    try:
        info = decoder.probe(record.media)
        spans = _spans(record, info.seconds, options)
    except BrokenVideoError as error:
        rejected.append(_rejection(record, f"broken: {error.reason}"))
        return []
    reason = _refusal(info.height, info.width, options)
    kept = []
    for number, (start, end) in enumerate(spans):
        whole = len(spans) == 1
        clip = dataclasses.replace(
            record, id=record.id if whole else f"{record.id}#{number:03d}", start=start, end=end
        )
        length = (info.seconds if end is None else end) - (start or 0.0)
        why = reason or (None if is_image(record.path) else _wrong_length(length, options))
        if why is None:
            try:
                kept.append(_encode(clip, info.height, info.width, info.fps, options, decoder))
                continue
            except BrokenVideoError as error:
                why = f"broken: {error.reason}"
        rejected.append(_rejection(clip, why))
    return kept


def _rejection(record: ClipRecord, reason: str) -> dict[str, str]:
    return {"id": record.id, "path": record.path, "reason": reason}


def _spans(
    record: ClipRecord, seconds: float, options: Options
) -> list[tuple[float | None, float | None]]:
    """Cut points: equal parts of at most `clip_seconds`; the whole file is (None, None)."""
    start, end = record.start or 0.0, min(record.end or seconds, seconds)
    if end <= start:
        reason = f"the clip starts at {start:g} s, but the file ends at {seconds:g} s"
        raise BrokenVideoError(record.path, reason)
    parts = 1
    if options.clip_seconds > 0 and not is_image(record.path):
        parts = max(int(np.ceil((end - start) / options.clip_seconds - 1e-6)), 1)
    if parts == 1 and record.start is None and record.end is None:
        return [(None, None)]
    edges = np.linspace(start, end, parts + 1)
    return [(float(a), float(b)) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _refusal(height: int, width: int, options: Options) -> str | None:
    if min(height, width) < options.min_side:
        return f"resolution: {width}x{height} is below {options.min_side} on the short side"
    aspect = max(height, width) / min(height, width)
    if options.max_aspect and aspect > options.max_aspect:
        return f"aspect: {aspect:.2f} is above {options.max_aspect:g}"
    return None


def _wrong_length(seconds: float, options: Options) -> str | None:
    if seconds < options.min_seconds:
        return f"duration: {seconds:.2f} s is below {options.min_seconds:g} s"
    if options.max_seconds and seconds > options.max_seconds:
        return f"duration: {seconds:.2f} s is above {options.max_seconds:g} s"
    return None


def _encode(
    clip: ClipRecord, height: int, width: int, fps: float, options: Options, decoder: Decoder
) -> tuple[dict[str, Any], bytes]:
    frames = decoder.count(clip.media, clip.start, clip.end)
    payload = clip_payload(clip, (height, width), options.store, options.height, options.crf,
                           options.quality)  # fmt: skip
    still = is_image(clip.path)
    span = float("inf") if still else frames / fps
    heights, widths, spans, rates = (
        np.array([float(v)]) for v in (payload.height, payload.width, span, fps)
    )
    buckets = parse_buckets(options.buckets)
    fits = assign_buckets(buckets, heights, widths, spans, rates)[0]
    values = {
        "id": clip.id,
        "caption": clip.caption,
        "path": clip.path,
        "buckets": ",".join(b.name for b, fit in zip(buckets, fits, strict=True) if fit),
        "start": payload.start,
        "end": payload.end,
        "seconds": payload.seconds if payload.seconds is not None else frames / fps,
        "fps": fps,
        "width": payload.width,
        "height": payload.height,
        "frames": frames,
    }
    row = {key: values[key] for key in ("id", "buckets", "fps", "width", "height", "frames")}
    row |= {"seconds": -1.0 if still else frames / fps, "caption": len(clip.caption or "")}
    return row, encode_example(values, payload.media)


def finish(jobs: Sequence[ShardJob]) -> dict[str, Any]:
    """Gather the shards' reports into the dataset's metadata: the statistics, which it returns.

    Writes TFDS's dataset_info.json and features.json, the index of sizes, `statistics.json` and
    `rejected.jsonl`.

    Raises:
        UserError: no clip at all was kept.
    """
    output, options = epath.Path(jobs[0].output), jobs[0].options
    reports = [json.loads(job.report.read_text()) for job in jobs]
    clips = [clip for report in reports for clip in report["clips"]]
    rejected = [entry for report in reports for entry in report["rejected"]]
    write_text(output / REJECTED, "".join(json.dumps(entry) + "\n" for entry in rejected))
    statistics = _statistics(clips, rejected, options)
    write_text(output / STATISTICS, json.dumps(statistics, indent=1))
    if not clips:
        first = rejected[0] if rejected else {"path": "-", "reason": "no input"}
        raise UserError(
            f"no clip was kept; the first rejected is {first['path']}: {first['reason']}; "
            f"all are in {output / REJECTED}"
        )
    _write_index(output, clips)
    lengths = [len(report["clips"]) for report in reports]
    _write_tfds(output, options, lengths, sum(clip["bytes"] for clip in clips))
    return statistics


def _statistics(
    clips: Sequence[dict], rejected: Sequence[dict], options: Options
) -> dict[str, Any]:
    reasons = collections.Counter(entry["reason"].split(":")[0] for entry in rejected)
    sizes = collections.Counter(f"{clip['width']}x{clip['height']}" for clip in clips)
    buckets = collections.Counter(b for clip in clips for b in clip["buckets"].split(","))
    return {
        "clips": len(clips),
        "frames": sum(clip["frames"] for clip in clips),
        "hours": sum(max(clip["seconds"], 0.0) for clip in clips) / 3600,
        "bytes": sum(clip["bytes"] for clip in clips),
        "with_caption": sum(clip["caption"] > 0 for clip in clips),
        "rejected": len(rejected),
        "rejected_by_reason": dict(sorted(reasons.items())),
        "resolutions": dict(sizes.most_common(50)),
        "buckets": {name: buckets.get(name, 0) for name in _bucket_names(options)},
        "options": dataclasses.asdict(options),
    }


def _bucket_names(options: Options) -> list[str]:
    return [bucket.name for bucket in parse_buckets(options.buckets)]


def _write_index(output: epath.Path, clips: Sequence[dict]) -> None:
    """Sizes and lengths in shard order, which the training pipeline reads instead of the clips."""
    columns = {key: np.array([clip[key] for clip in clips], np.float64) for key in
               ("height", "width", "seconds", "fps")}  # fmt: skip
    columns["seconds"] = np.where(columns["seconds"] < 0, np.inf, columns["seconds"])
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / INDEX_FILE
        np.savez(local, allow_pickle=False, **columns)
        publish(local, output / INDEX_FILE)


def _write_tfds(output: epath.Path, options: Options, lengths: list[int], size: int) -> None:
    features: dict[str, Any] = {key: tfds.features.Text() for key in TEXT_KEYS}
    features |= {key: tfds.features.Scalar(np.float32) for key in FLOAT_KEYS}
    features |= {key: tfds.features.Scalar(np.int64) for key in INT_KEYS}
    if options.store == "frames":
        features[MEDIA_KEY] = tfds.features.Video(
            shape=(None, None, None, 3), encoding_format="jpeg"
        )
    else:
        features[MEDIA_KEY] = tfds.features.Tensor(shape=(), dtype=np.object_)
    write_tfds_metadata(
        output, dataset=options.name, kind=options.format, features=features, lengths=lengths,
        size=size, description="Video clips prepared by pyratok_jax.data.prepare.",
    )  # fmt: skip
