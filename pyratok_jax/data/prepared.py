"""What makes a dataset of prepared shards: statistics, sizes, and the metadata of TFDS."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from pyratok_jax.data.buckets import parse_buckets
from pyratok_jax.data.clip_shards import ClipRow, ClipShard
from pyratok_jax.data.options import PrepareOptions
from pyratok_jax.data.sources.examples import CLIP_SCHEMA, MEDIA_KEY
from pyratok_jax.data.sources.shards import INDEX_FILE
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import write_json, write_npz
from pyratok_jax.io.sharded_job import REJECTED, Rejection
from pyratok_jax.io.shards import shard_files

STATISTICS = "statistics.json"


def finish(shards: Sequence[ClipShard]) -> dict[str, Json]:
    """Gather the shards' reports into the dataset's metadata: the statistics, which it returns.

    Writes TFDS's dataset_info.json and features.json, the index of sizes, `statistics.json` and
    `rejected.jsonl`.

    Raises:
        UserError: no clip at all was kept.
    """
    job, options = shards[0].job, shards[0].options
    output = epath.Path(job.output)
    reports = job.reports([shard.key() for shard in shards])
    if reports is None:
        raise UserError(f"{output} lacks shards that were just written; is another run at work?")
    clips: list[ClipRow] = [clip for report in reports for clip in report["clips"]]
    rejected = job.write_rejected(reports)
    statistics = _statistics(clips, rejected, options)
    write_json(output / STATISTICS, statistics)
    if not clips:
        first = rejected[0] if rejected else {"path": "-", "reason": "no input"}
        raise UserError(
            f"no clip was kept; the first rejected is {first['path']}: {first['reason']}; "
            f"all are in {output / REJECTED}"
        )
    _write_index(output, clips)
    kept = options.store == "bytes" and any(r.stored for shard in shards for r in shard.records)
    job.write_metadata(
        _features(kept or options.store == "frames"), [len(report["clips"]) for report in reports],
        sum(clip["bytes"] for clip in clips), "Video clips prepared by pyratok_jax.data.prepare.",
    )  # fmt: skip
    return statistics


def _statistics(
    clips: Sequence[ClipRow], rejected: Sequence[Rejection], options: PrepareOptions
) -> dict[str, Json]:
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


def _bucket_names(options: PrepareOptions) -> list[str]:
    return [bucket.name for bucket in parse_buckets(options.buckets)]


def _write_index(output: epath.Path, clips: Sequence[ClipRow]) -> None:
    """Sizes and lengths in shard order, which the training pipeline reads instead of the clips."""
    seconds = np.array([clip["seconds"] for clip in clips], np.float64)
    write_npz(
        output / INDEX_FILE,
        height=np.array([clip["height"] for clip in clips], np.float64),
        width=np.array([clip["width"] for clip in clips], np.float64),
        seconds=np.where(seconds < 0, np.inf, seconds),
        fps=np.array([clip["fps"] for clip in clips], np.float64),
    )


def _features(frames: bool) -> dict[str, tfds.features.FeatureConnector]:
    features = CLIP_SCHEMA.tfds_features()
    if frames:
        features[MEDIA_KEY] = tfds.features.Video(
            shape=(None, None, None, 3), encoding_format="jpeg"
        )
    else:
        features[MEDIA_KEY] = tfds.features.Tensor(shape=(), dtype=np.object_)
    return features


def refuse_other_shards(shards: Sequence[ClipShard], output: epath.Path) -> None:
    """Two preparations in one folder would be read as one source: every clip twice.

    Raises:
        UserError: the folder holds shards of another number, name or format.
    """
    own = {shard.job.shard_name(shard.number) for shard in shards}
    found = [epath.Path(file).name for file in shard_files(str(output))] if output.exists() else []
    others = [name for name in found if name not in own]
    if others:
        raise UserError(
            f"{output} holds {others[0]} of another preparation (its --shards, --name or --format "
            "differ); give the ones that it was made with, or another --output"
        )
