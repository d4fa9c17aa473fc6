"""Turn raw videos into shards for training: `python -m pyratok_jax.data.prepare --help`."""

import argparse
import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from rich.console import Console

from pyratok_jax.checkpoints import verification
from pyratok_jax.data.buckets import parse_buckets
from pyratok_jax.data.clip_shards import (
    ClipRow,
    ClipShard,
    PrepareOptions,
    plan_shards,
    write_shard,
)
from pyratok_jax.data.sources.examples import CLIP_SCHEMA, MEDIA_KEY
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.sources.shards import INDEX_FILE
from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import write_json, write_npz
from pyratok_jax.io.cli import add_no_verify, command_parser
from pyratok_jax.io.progress import PlainConsole, track
from pyratok_jax.io.remote import is_remote
from pyratok_jax.io.sharded_job import REJECTED, Rejection, check_output
from pyratok_jax.io.shards import FORMATS, shard_files

STATISTICS = "statistics.json"
EXTRA = "beam"  # The optional dependencies in pyproject.toml that bring Apache Beam.


_WHAT = (
    "Decode, cut, filter and bucket raw videos, and write them as TFDS shards. "
    "A run that was interrupted resumes where it stopped. Further --options go to Beam."
)


def parser() -> argparse.ArgumentParser:
    """The command line; arguments that it does not know are handed to Beam."""
    p = command_parser(
        "pyratok_jax.data.prepare",
        _WHAT,
        examples=["--input videos.csv --output prepared --height 720"],
    )
    d = PrepareOptions()
    p.add_argument("--input", required=True, help="folder, manifest or other source of clips")
    p.add_argument("--output", required=True, help="folder of the dataset (local or gs://)")
    p.add_argument("--format", choices=FORMATS, default=d.format)
    p.add_argument("--name", default=d.name, help="name of the TFDS dataset")
    p.add_argument("--shards", type=int, default=d.shards, help="number of files")
    p.add_argument(
        "--store", choices=("bytes", "reencode", "frames"), default=d.store,
        help="keep the compressed stream, re-encode it as H.264, or store frames as JPEG",
    )  # fmt: skip
    p.add_argument("--height", type=int, default=d.height, help="shrink the short side; 0: not")
    p.add_argument("--crf", type=int, default=d.crf, help="H.264 quality of --store reencode")
    p.add_argument("--quality", type=int, default=d.quality, help="JPEG quality")
    p.add_argument("--clip-seconds", type=float, default=d.clip_seconds, help="cut to; 0: not")
    p.add_argument("--min-side", type=int, default=d.min_side, help="pixels of the short side")
    p.add_argument("--min-seconds", type=float, default=d.min_seconds, help="shortest clip")
    p.add_argument("--max-seconds", type=float, default=d.max_seconds, help="longest; 0: any")
    p.add_argument("--max-aspect", type=float, default=d.max_aspect, help="long/short; 0: any")
    p.add_argument("--buckets", nargs="+", default=list(d.buckets), help="frames x height x width")
    p.add_argument("--time-limit", type=float, default=d.time_limit, help="seconds per decode")
    p.add_argument(
        "--runner", default="DirectRunner",
        help="Beam runner (DirectRunner, DataflowRunner, FlinkRunner, SparkRunner), or none: "
        "in this process, without Beam",
    )  # fmt: skip
    add_no_verify(p)
    return p


def options_of(arguments: argparse.Namespace) -> PrepareOptions:
    """The part of the arguments that decides the shards' content."""
    fields = {key: getattr(arguments, key) for key in PrepareOptions.__dataclass_fields__}
    fields["buckets"] = tuple(fields["buckets"])
    if fields["shards"] < 1:
        raise UserError(f"--shards is {fields['shards']}; expected at least 1")
    parse_buckets(fields["buckets"])
    return PrepareOptions(**fields)


def run_local(shards: Sequence[ClipShard], console: Console) -> None:
    """All shards in this process, with a progress bar."""
    for shard in track(shards, "shards", console):
        write_shard(shard)


def run_beam(shards: Sequence[ClipShard], runner: str, extra: Sequence[str]) -> None:
    """All shards as a Beam pipeline.

    Raises:
        UserError: Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            "preparation runs on Apache Beam, which is not installed: pip install -e "
            f"'.[{EXTRA}]', or add --runner none to work in this process"
        ) from error
    options = PipelineOptions(list(extra), runner=runner, save_main_session=False)
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(list(shards))
            | "spread" >> beam.Reshuffle()
            | "write" >> beam.Map(write_shard)
        )


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
    job.write_metadata(
        _features(options), [len(report["clips"]) for report in reports],
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


def _features(options: PrepareOptions) -> dict[str, tfds.features.FeatureConnector]:
    features = CLIP_SCHEMA.tfds_features()
    if options.store == "frames":
        features[MEDIA_KEY] = tfds.features.Video(
            shape=(None, None, None, 3), encoding_format="jpeg"
        )
    else:
        features[MEDIA_KEY] = tfds.features.Tensor(shape=(), dtype=np.object_)
    return features


def _refuse_other_shards(shards: Sequence[ClipShard], output: epath.Path) -> None:
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, extra = parser().parse_known_args(argv)
    options, console = options_of(arguments), PlainConsole()
    if arguments.runner == "none" and extra:
        raise UserError(f"unknown arguments {' '.join(extra)}; see --help")
    output = check_output(arguments.output)
    records = load_source(arguments.input)
    shards = plan_shards(records, str(output), options)
    _refuse_other_shards(shards, output)
    for shard in shards:
        if shard.withdraw_if_damaged(compare=verification.enabled()):
            name = shard.job.shard_name(shard.number)
            console.print(f"{name} is damaged and is written again", soft_wrap=True)
    done = sum(shard.is_done() for shard in shards)
    console.print(f"{len(records)} records, {len(shards)} shards, {done} of them already written")
    if not is_remote(output):
        output.mkdir(parents=True, exist_ok=True)
    waiting = [shard for shard in shards if not shard.is_done()]
    if waiting and arguments.runner == "none":
        run_local(waiting, console)
    elif waiting:
        run_beam(waiting, arguments.runner, extra)
    statistics = finish(shards)
    console.print(f"kept {statistics['clips']} clips, rejected {statistics['rejected']}")
    console.print(f"dataset: {output}\nstatistics: {output / STATISTICS}", soft_wrap=True)
    console.print(f"rejected, with reasons: {output / REJECTED}", soft_wrap=True)


if __name__ == "__main__":
    run_cli(main)
