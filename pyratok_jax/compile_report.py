"""Prove a pod-size run without a pod: `python -m pyratok_jax.compile_report --help`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict
from rich.console import Console

from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import write_text
from pyratok_jax.io.cli import command_parser, local_path
from pyratok_jax.io.progress import PlainConsole
from pyratok_jax.pods.topology import describe, parse_slice, prepare

if TYPE_CHECKING:
    from pyratok_jax.data.buckets import Bucket

STEPS = ("train", "tokenise", "decode", "generator", "generate")
# The options that one kind of run looks at alone, with the values that the other kind may have.
_OF_REPORTS: dict[str, tuple[object, ...]] = {
    "chips": (0,),
    "step": (STEPS, ("train",)),
    "tokenizer": ("tpu_v5:stage1",),
    "clips": (0,),
    "keep_program": (None,),
}
_OF_SWEEPS = {"sweep_remat": "auto,none,stages", "sweep_clips": "1,2", "sweep_meshes": ""}


def _steps(text: str) -> tuple[str, ...]:
    names = set(STEPS if text == "all" else text.split(","))
    unknown = ", ".join(sorted(names - set(STEPS)))
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {unknown}; give all, or {','.join(STEPS)}")
    return tuple(step for step in STEPS if step in names)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.compile_report",
        "Compile the train, tokenise and decode steps of a tokenizer's config, or the training and "
        "sampling steps of a prior's (generator, generate), for a TPU slice on a machine without a "
        "TPU, and report memory, work, traffic and estimated time. Values of the config are "
        "changed with --config.KEY=VALUE.",
        examples=["--config tpu_v5:stage1 --topology v5p:4x4x4 --bucket 17x512x512"],
    )
    p.add_argument("--config", default="tpu_v5:stage1", help="NAME or FILE[:ARGUMENT]")
    p.add_argument("--topology", default="v5p:4x4x4", help="one slice: v5e:AxB, v5p:AxBxC, v6e:AxB")
    p.add_argument("--slices", type=int, default=0, help="of them; 0: as config.mesh.slices says")
    p.add_argument("--chips", type=int, default=0, help="use the first N chips only; 0: all")
    p.add_argument(
        "--step",
        default="all",
        type=_steps,
        help=f"all of the config's task, or some of {','.join(STEPS)}",
    )
    p.add_argument(
        "--tokenizer",
        default=_OF_REPORTS["tokenizer"][0],
        help="of a prior: config of the training of the tokenizer whose tokens it has",
    )
    p.add_argument(
        "--bucket",
        help="clip shape, 17x512x512 or with clips 97x2048x2048*4; none: the largest, of a prior "
        "17x256x256",
    )
    p.add_argument(
        "--clips", type=int, default=0, help="tokenised, decoded or drawn at once; 0: by mesh"
    )
    p.add_argument(
        "--effort",
        default="full",
        choices=["full", "medium", "low", "memory"],
        help="of the compiler: medium and low take less time for slower programs, memory stops "
        "when memory is assigned, without estimated cycles",
    )
    p.add_argument(
        "--sweep", action="store_true",
        help="try batches, remat and meshes of a tokenizer's train step, on all chips",
    )  # fmt: skip
    p.add_argument("--sweep_remat", default=_OF_SWEEPS["sweep_remat"], help="policies to try")
    p.add_argument(
        "--sweep_clips",
        default=_OF_SWEEPS["sweep_clips"],
        help="clips of a chip at a time to try",
    )
    p.add_argument("--sweep_meshes", default="", help="FSDPxSPATIAL to try, 4x16,64x1; none: some")
    p.add_argument(
        "--output",
        default="compile_report.json",
        type=local_path,
        help="JSON file, or with --sweep JSONL",
    )
    p.add_argument(
        "--keep-program",
        "--keep_program",
        type=local_path,
        help="folder for the optimised programs' texts",
    )
    return p


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be written or does not go together, before anything is compiled.

    Raises:
        UserError: naming the option.
    """
    _check_folder(Path(options.output))
    if options.keep_program and Path(options.keep_program).is_file():
        raise UserError(f"--keep-program {options.keep_program} is a file; give a folder")
    for name in ("slices", "clips"):
        if getattr(options, name) < 0:
            raise UserError(f"--{name} {getattr(options, name)}: expected a number from 0")
    given = [name for name in _OF_REPORTS if getattr(options, name) not in _OF_REPORTS[name]]
    if options.sweep and given:
        raise UserError(
            f"--sweep compiles the train step for all chips and does not look at "
            f"{_flags(given)}; leave {'it' if len(given) == 1 else 'them'} out"
        )
    given = [name for name in _OF_SWEEPS if getattr(options, name) != _OF_SWEEPS[name]]
    if not options.sweep and given:
        raise UserError(f"{_flags(given)}: for --sweep alone; give it, or leave them out")


def _flags(names: Sequence[str]) -> str:
    return ", ".join("--keep-program" if name == "keep_program" else f"--{name}" for name in names)


def main() -> int:
    """Compile and report; returns the exit code."""
    own = [a for a in sys.argv[1:] if not a.startswith("--config.")]
    changes = [a for a in sys.argv[1:] if a.startswith("--config.")]
    options = parser().parse_args(own)
    check(options)
    where = parse_slice(options.topology)
    prepare(where)
    # Only now: importing the rest initialises JAX's backend.
    from pyratok_jax.pods.plan import CompileRequest, choose_bucket, choose_steps, compile_all
    from pyratok_jax.training.config import parse_flags

    config, _ = parse_flags(
        [sys.argv[0], f"--config={options.config}", *changes], default_config=""
    )
    if options.sweep and config.task == "generator":
        raise UserError("--sweep tries a tokenizer's train step; --config is of a prior")
    steps, tokenizer = choose_steps(config, options.step), None
    if config.task == "generator":
        tokenizer, _ = parse_flags(
            [sys.argv[0], f"--config={options.tokenizer}"], default_config=""
        )
    slices = options.slices or config.mesh.slices
    config.mesh.slices = slices
    if not 0 <= options.chips <= where.count * slices:
        raise UserError(
            f"--chips {options.chips}: {slices} x {where.name} has {where.count * slices} chips; "
            "expected a number up to that, or 0 for all"
        )
    bucket = choose_bucket(config, options.bucket)
    console = PlainConsole()
    output = Path(options.output)
    if options.sweep:
        _sweep(config, options, changes, where.count, slices, bucket, console)
        console.print(f"candidates: {output}")
        return 0
    devices = describe(where, slices)[: options.chips or None]
    request = CompileRequest(
        where, slices, options.chips, steps, bucket, options.clips, options.effort, tokenizer
    )

    def keep(step: str, text: str) -> None:
        folder = Path(options.keep_program)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f"{step}.hlo.txt", text)

    report = compile_all(
        config,
        devices,
        request,
        say=lambda text: console.print(text),
        keep_text=keep if options.keep_program else None,
    )
    report["command"] = " ".join(["python -m pyratok_jax.compile_report", *sys.argv[1:]])
    finish(report, output, console)
    if options.effort == "memory":
        # The compiler is still generating code that is not needed.
        sys.stdout.flush()
        os._exit(0)
    return 0


def _sweep(
    config: ConfigDict,
    options: argparse.Namespace,
    changes: list[str],
    chips: int,
    slices: int,
    bucket: "Bucket",
    console: Console,
) -> None:
    """Try settings; the file grows by one line each."""
    from pyratok_jax.pods import sweep

    meshes = sweep.parse_meshes(options.sweep_meshes) if options.sweep_meshes else None
    given = sweep.candidates(
        chips,
        options.sweep_remat.split(","),
        sweep.parse_counts(options.sweep_clips),
        meshes or sweep.default_meshes(chips),
    )
    shared = [
        f"--config={options.config}", f"--topology={options.topology}", f"--slices={slices}",
        f"--bucket={bucket.name}*{bucket.clips or config.batch_size}", f"--effort={options.effort}",
        *changes,
    ]  # fmt: skip
    batch = bucket.clips or config.batch_size
    sweep.sweep(given, shared, batch, chips * slices, Path(options.output), console)


def finish(report: dict[str, Json], output: Path, console: Console) -> None:
    """Write and print a report."""
    from pyratok_jax.pods.report import ASSUMPTIONS, show

    report["assumptions"] = list(ASSUMPTIONS)
    write(output, json.dumps(report, indent=1) + "\n")
    show(report, console)
    console.print(f"\nreport: {output}")


def write(path: Path, text: str) -> None:
    """Write a file atomically.

    Raises:
        UserError: the folder is missing.
    """
    _check_folder(path)
    write_text(path, text)


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; give a file in it")


if __name__ == "__main__":
    run_cli(main)
