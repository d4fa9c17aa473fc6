"""Turn raw videos into shards for training: `python -m pyratok_jax.data.prepare --help`."""

import argparse
from collections.abc import Sequence

from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pyratok_jax.data.buckets import parse_buckets
from pyratok_jax.data.preparing import (
    REJECTED,
    STATISTICS,
    Options,
    ShardJob,
    finish,
    is_done,
    plan_shards,
    write_shard,
)
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.errors import UserError, run_cli


def parser() -> argparse.ArgumentParser:
    """The command line; arguments that it does not know are handed to Beam."""
    p = argparse.ArgumentParser(
        prog="python -m pyratok_jax.data.prepare",
        description="Decode, cut, filter and bucket raw videos, and write them as TFDS shards. "
        "A run that was interrupted goes on where it stopped. Further --options go to Beam.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    d = Options()
    p.add_argument("--input", required=True, help="folder, manifest or other source of clips")
    p.add_argument("--output", required=True, help="folder of the dataset (local or gs://)")
    p.add_argument("--format", choices=("array_record", "tfrecord"), default=d.format)
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
    return p


def options_of(arguments: argparse.Namespace) -> Options:
    """The part of the arguments that decides the shards' content."""
    fields = {key: getattr(arguments, key) for key in Options.__dataclass_fields__}
    fields["buckets"] = tuple(fields["buckets"])
    if fields["shards"] < 1:
        raise UserError(f"--shards is {fields['shards']}; expected at least 1")
    parse_buckets(fields["buckets"])
    return Options(**fields)


def run_local(jobs: Sequence[ShardJob], console: Console) -> None:
    """All shards in this process, with a progress bar."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        for job in progress.track(jobs, description="shards"):
            write_shard(job)


def run_beam(jobs: Sequence[ShardJob], runner: str, extra: Sequence[str]) -> None:
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
            "'.[prepare]', or add --runner none to work in this process"
        ) from error
    options = PipelineOptions(list(extra), runner=runner, save_main_session=False)
    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(list(jobs))
            | "spread" >> beam.Reshuffle()
            | "write" >> beam.Map(write_shard)
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, extra = parser().parse_known_args(argv)
    options, console = options_of(arguments), Console()
    if arguments.runner == "none" and extra:
        raise UserError(f"unknown arguments {' '.join(extra)}; see --help")
    output = epath.Path(arguments.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    records = load_source(arguments.input)
    jobs = plan_shards(records, str(output), options)
    done = sum(map(is_done, jobs))
    console.print(f"{len(records)} records, {len(jobs)} shards, {done} of them already written")
    output.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not is_done(job)]
    if waiting and arguments.runner == "none":
        run_local(waiting, console)
    elif waiting:
        run_beam(waiting, arguments.runner, extra)
    statistics = finish(jobs)
    console.print(f"kept {statistics['clips']} clips, rejected {statistics['rejected']}")
    console.print(f"dataset: {output}\nstatistics: {output / STATISTICS}", soft_wrap=True)
    console.print(f"rejected, with reasons: {output / REJECTED}", soft_wrap=True)


if __name__ == "__main__":
    run_cli(main)
