"""Turn raw videos into shards for training: `python -m pyratok_jax.data.prepare --help`."""

import argparse
import difflib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from pyratok_jax.data.buckets import parse_buckets
from pyratok_jax.data.options import PrepareOptions
from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io.cli import add_no_verify, command_parser
from pyratok_jax.io.progress import PlainConsole, track
from pyratok_jax.io.remote import is_remote
from pyratok_jax.io.sharded_job import REJECTED, check_output
from pyratok_jax.io.shards import FORMATS

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from pyratok_jax.data.clip_shards import ClipShard

# Options of how clips are stored, and the values of --store that they are for.
_USED_BY = {"height": ("reencode", "frames"), "crf": ("reencode", "bytes"), "quality": ("frames",)}
EXTRA = "beam"  # The optional dependencies in pyproject.toml that bring Apache Beam.
_KNOWN_RUNNERS = ("directrunner", "dataflowrunner")  # All their options are in Beam's package.


def parser() -> argparse.ArgumentParser:
    """The command line; arguments that it does not know are handed to Beam."""
    p = command_parser(
        "pyratok_jax.data.prepare",
        "Decode, cut, filter and bucket raw videos, and write them as TFDS shards. "
        "A run that was interrupted resumes where it stopped. Further --options go to Beam.",
        examples=["--input videos.csv --output prepared --height 720"],
    )
    d = PrepareOptions()
    p.add_argument("--input", required=True, help="folder, manifest or other source of clips")
    p.add_argument("--output", required=True, help="folder of the dataset (local or gs://)")
    p.add_argument("--format", choices=FORMATS, default=d.format)
    p.add_argument("--name", default=d.name, help="name of the TFDS dataset")
    p.add_argument("--shards", type=int, default=d.shards, help="number of files")
    p.add_argument(
        "--store", choices=("bytes", "reencode", "frames"),
        help="keep the compressed stream, re-encode it as H.264, or store frames as JPEG "
        f"(default: {d.store}; with --height or --crf: reencode)",
    )  # fmt: skip
    p.add_argument(
        "--height", type=int, default=d.height, help="shrink the short side to these pixels, of "
        "--store reencode and frames; 0: not"
    )  # fmt: skip
    p.add_argument(
        "--crf", type=int, help="H.264 quality of --store reencode, and of cuts that --store "
        f"bytes has to encode, 0 (best) to 51 (default: {d.crf})"
    )  # fmt: skip
    p.add_argument(
        "--quality", type=int, help="JPEG quality of --store frames, 1 to 100 (best) (default: "
        f"{d.quality})"
    )  # fmt: skip
    p.add_argument("--clip-seconds", type=float, default=d.clip_seconds, help="cut to; 0: not")
    p.add_argument("--min-side", type=int, default=d.min_side, help="pixels of the short side")
    p.add_argument("--min-seconds", type=float, default=d.min_seconds, help="shortest clip")
    p.add_argument("--max-seconds", type=float, default=d.max_seconds, help="longest; 0: any")
    p.add_argument("--max-aspect", type=float, default=d.max_aspect, help="long/short; 0: any")
    p.add_argument("--buckets", nargs="+", default=list(d.buckets), help="frames x height x width")
    p.add_argument(
        "--time-limit", type=float, default=d.time_limit, help="seconds per decode; 0: any"
    )
    p.add_argument(
        "--runner", default="DirectRunner",
        help="Beam runner (DirectRunner, DataflowRunner, FlinkRunner, SparkRunner), or none: "
        "in this process, without Beam",
    )  # fmt: skip
    add_no_verify(p)
    return p


def options_of(arguments: argparse.Namespace) -> PrepareOptions:
    """The part of the arguments that decides the shards' content.

    Raises:
        UserError: a value out of range, or one that the chosen --store does not use.
    """
    names = PrepareOptions.__dataclass_fields__
    fields = {key: value for key in names if (value := getattr(arguments, key)) is not None}
    fields["buckets"] = tuple(fields["buckets"])
    # A compressed stream that is kept as it is has neither another size nor another quality.
    encoded = fields["height"] or "crf" in fields
    fields.setdefault("store", "reencode" if encoded else PrepareOptions.store)
    options = PrepareOptions(**fields)
    options.check()
    for name, stores in _USED_BY.items():
        asked = name in fields and (name, fields[name]) != ("height", 0)
        if asked and options.store not in stores:
            raise UserError(
                f"--{name} does nothing with --store {options.store}; it goes with --store "
                f"{' or '.join(stores)}"
            )
    parse_buckets(options.buckets)
    return options


def run_local(shards: Sequence["ClipShard"], console: Console) -> None:
    """All shards in this process, with a progress bar."""
    from pyratok_jax.data.clip_shards import write_shard

    for shard in track(shards, "shards", console):
        write_shard(shard)


def beam_options(runner: str, extra: Sequence[str]) -> "PipelineOptions":
    """The options of Beam among the arguments of the command.

    Args:
        runner: name of Beam's runner.
        extra: the arguments that are none of this command's.

    Raises:
        UserError: Beam is not installed, or as `check_extra`.
    """
    # It warns of clients of Google's services, which are needed where they are asked for alone.
    logging.disable(logging.WARNING)
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            "preparation runs on Apache Beam, which is not installed: pip install -e "
            f"'.[{EXTRA}]', or add --runner none to work in this process"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    check_extra(extra, runner, PipelineOptions.__subclasses__())
    return PipelineOptions(list(extra), runner=runner, save_main_session=False)


def check_extra(
    extra: Sequence[str], runner: str, kinds: "Sequence[type[PipelineOptions]]"
) -> None:
    """Refuse arguments that nobody knows: Beam drops them with a warning.

    Runners with a server of their own (Flink's) know options that Beam does not: of those, only
    what looks like an option of this command is refused.

    Args:
        extra: the arguments.
        runner: name of Beam's runner.
        kinds: Beam's classes of options.

    Raises:
        UserError: an argument is unknown, or has a value that Beam does not take.
    """
    known = _BeamParser(add_help=False, allow_abbrev=False)
    for kind in kinds:
        kind._add_argparse_args(known)  # Beam has no public list of its options.
    unknown = known.parse_known_args(list(extra))[1]
    own = [option for action in parser()._actions for option in action.option_strings]
    near = {one: difflib.get_close_matches(one.partition("=")[0], own, 1) for one in unknown}
    if runner.lower() not in _KNOWN_RUNNERS:
        unknown = [one for one in unknown if near[one]]
    if unknown:
        meant = [f"{near[one][0]} for {one}" for one in unknown if near[one]]
        hint = f"is it {', '.join(meant)}" if meant else "see --help"
        raise UserError(
            f"unknown arguments {' '.join(unknown)}: they are neither of this command nor of "
            f"Beam; {hint}"
        )


class _BeamParser(argparse.ArgumentParser):
    """Takes the definitions of Beam's options; what is wrong is a `UserError`."""

    def add_value_provider_argument(self, *names: Any, **options: Any) -> None:
        self.add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; further options are Beam's, see its documentation")


def run_beam(shards: Sequence["ClipShard"], options: "PipelineOptions") -> None:
    """All shards as a Beam pipeline."""
    import apache_beam as beam

    from pyratok_jax.data.clip_shards import write_shard

    with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(list(shards))
            | "spread" >> beam.Reshuffle()
            | "write" >> beam.Map(write_shard)
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, extra = parser().parse_known_args(argv)
    options, console = options_of(arguments), PlainConsole()
    if arguments.runner == "none" and extra:
        raise UserError(f"unknown arguments {' '.join(extra)}; see --help")
    output = check_output(arguments.output)
    if extra:
        beam_options(arguments.runner, extra)
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.checkpoints import verification
    from pyratok_jax.data.clip_shards import plan_shards
    from pyratok_jax.data.prepared import STATISTICS, finish, refuse_other_shards
    from pyratok_jax.data.sources.registry import load_source

    records = load_source(arguments.input)
    shards = plan_shards(records, str(output), options)
    refuse_other_shards(shards, output)
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
        run_beam(waiting, beam_options(arguments.runner, extra))
    statistics = finish(shards)
    console.print(f"kept {statistics['clips']} clips, rejected {statistics['rejected']}")
    console.print(f"dataset: {output}\nstatistics: {output / STATISTICS}", soft_wrap=True)
    console.print(f"rejected, with reasons: {output / REJECTED}", soft_wrap=True)


if __name__ == "__main__":
    run_cli(main)
