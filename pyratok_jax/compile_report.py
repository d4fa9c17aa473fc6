"""Prove a pod-size run without a pod: `python -m pyratok_jax.compile_report --help`."""

import argparse
import json
import os
import sys
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
        default="tpu_v5:stage1",
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
        "--sweep", action="store_true", help="try batches, remat and meshes (train step)"
    )
    p.add_argument("--sweep_remat", default="auto,none,stages", help="policies to try")
    p.add_argument("--sweep_clips", default="1,2", help="clips of a chip at a time to try")
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


def main() -> int:
    """Compile and report; returns the exit code."""
    own = [a for a in sys.argv[1:] if not a.startswith("--config.")]
    changes = [a for a in sys.argv[1:] if a.startswith("--config.")]
    options = parser().parse_args(own)
    where = parse_slice(options.topology)
    prepare(where)
    # Only now: importing the rest initialises JAX's backend.
    from pyratok_jax.pods.plan import CompileRequest, choose_bucket, choose_steps, compile_all
    from pyratok_jax.training.config import parse_flags

    config, _ = parse_flags(
        [sys.argv[0], f"--config={options.config}", *changes], default_config=""
    )
    steps, tokenizer = choose_steps(config, options.step), None
    if config.task == "generator":
        tokenizer, _ = parse_flags(
            [sys.argv[0], f"--config={options.tokenizer}"], default_config=""
        )
    slices = options.slices or config.mesh.slices
    config.mesh.slices = slices
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
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: the folder {path.parent} does not exist; make it first")
    write_text(path, text)


if __name__ == "__main__":
    run_cli(main)
