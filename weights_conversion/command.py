"""The command line that all converters share: flags, progress and the closing lines."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyratok_jax.checkpoints.conversion import ConversionPlan, check_apart, write_checkpoint
from pyratok_jax.checkpoints.hub import local_folder
from pyratok_jax.checkpoints.weights import DTYPES, read_config
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.cli import command_parser, local_path

DRY = "dry run: everything fits, nothing written"


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags of every converter; add more to it as needed."""
    running = sys.modules["__main__"].__spec__
    module = running.name.removesuffix(".__main__") if running else "weights_conversion"
    parser = command_parser(
        module,
        description,
        examples=[
            "--input DOWNLOADED --output weights/NAME",
            "--input DOWNLOADED --output x --dry-run",
        ],
    )
    parser.add_argument(
        "--input",
        required=True,
        type=lambda spec: str(local_folder(spec)),
        help="weights file, shard index, folder, or hf://ORG/NAME[@REVISION][/SUBFOLDER]",
    )
    parser.add_argument("--output", required=True, type=local_path, help="folder to write")
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES), help="dtype to store")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    return parser


def check_export(arguments: argparse.Namespace) -> None:
    """Refuse flags that mean nothing where stored arrays are written out as they are.

    Raises:
        UserError: one is given, or the output would replace the input.
    """
    check_apart(arguments.output, [arguments.input])
    given = {
        "--verify": arguments.verify,
        "--config": arguments.config,
        "--dtype": arguments.dtype != "float32",
    }
    for flag, value in given.items():
        if value:
            raise UserError(
                f"{flag} does not go with --to diffusers, which writes every array as it is stored"
            )


def convert(
    arguments: argparse.Namespace,
    *,
    kind: str,
    config: Mapping[str, Json],
    plan: ConversionPlan,
    copy: Sequence[Path] = (),
    title: str | None = None,
) -> int:
    """Check the plan, write the folder with a progress bar, and say what was done. Returns 0."""

    from pyratok_jax.io.progress import PlainConsole, progress_bar

    console = PlainConsole()
    plan.check()
    console.print(f"{title or kind} in {plan.source.path}: {plan.source.kind}")
    console.print(plan.report())
    if arguments.dry_run:
        console.print(DRY)
        return 0
    with progress_bar(console, only_on_terminal=True) as bar:
        task = bar.add_task("converting", total=len(plan.shapes))
        output = write_checkpoint(
            arguments.output,
            kind=kind,
            config=config,
            plan=plan,
            dtype=arguments.dtype,
            overwrite=arguments.overwrite,
            copy=copy,
            progress=lambda _: bar.advance(task),
        )
    console.print(f"sha256 {read_config(output, kind)['sha256']}")
    console.print(f"written: {output}", soft_wrap=True)
    return 0
