"""Train a set of ablations with equal budgets and seeds, and write one table.

    python -m pyratok_jax.ablate --names full,no_text,rvq --seeds 3 --workdir runs/ablations

Every name and seed is a training of its own under WORKDIR/NAME/seed_N; finished ones are not
repeated, interrupted ones resume. A run that fails is named with its reason and left out.
"""

import argparse
import logging
import re
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pyratok_jax.assets.programs import keep_programs
from pyratok_jax.errors import (
    EXIT_INTERRUPTED,
    UserError,
    environment_reason,
    run_cli,
    short,
)
from pyratok_jax.io import Json
from pyratok_jax.io.cli import command_parser, local_path
from pyratok_jax.io.progress import PlainConsole
from pyratok_jax.training.ablations.table import (
    ABLATIONS,
    DEFAULT_NAMES,
    SCALES,
    changes_of,
    find,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command-line flags."""
    parser = command_parser(
        "pyratok_jax.ablate",
        __doc__.splitlines()[0],
        examples=["--names full,no_text,rvq --seeds 3 --workdir runs/ablations", "--list"],
    )
    parser.add_argument("--names", default=",".join(DEFAULT_NAMES), help="ablations, or `all`")
    parser.add_argument("--seeds", type=int, default=3, help="trainings per ablation: seeds 0, 1..")
    parser.add_argument("--scale", choices=SCALES, default="demo", help="base config")
    parser.add_argument("--config", default="configs/ablations.py", help="file of the configs")
    parser.add_argument("--workdir", default="runs/ablations", type=local_path,
                        help="folder of runs and tables")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change a config value in every run, e.g. --set steps=50")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="explain every ablation and end")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the ablations; 1 when some failed."""
    options = parse(arguments)
    console = PlainConsole()
    if options.list:
        console.print(_explained())
        return 0
    names = _names(options)
    if options.seeds < 1:
        raise UserError("--seeds must be at least 1")
    if ":" in Path(options.config).name:
        raise UserError(f"--config {options.config}: --names says which ablations; leave the : out")
    _check_changes(options, names)
    for name in names:
        _config(options, name, 0)  # Mistakes in --config and --set are those of every run.
    results, failed = _run_all(options, names, console)
    if results is None:
        return EXIT_INTERRUPTED
    from pyratok_jax.reports.ablation import summarise, write_tables

    rows = summarise(results)
    if not rows:
        raise UserError("no run succeeded: there is no table to write")
    for what, path in write_tables(rows, Path(options.workdir)).items():
        console.print(f"{what:<6} {path}", soft_wrap=True)
    for where, why in failed.items():
        console.print(f"failed: {where}: {why}", soft_wrap=True)
    return 1 if failed else 0


def _names(options: argparse.Namespace) -> list[str]:
    if options.names == "all":
        return [name for name, one in ABLATIONS.items() if options.scale in one.scales]
    names = list(dict.fromkeys(name for name in options.names.split(",") if name))
    if not names:
        raise UserError("--names is empty; --list explains the ablations")
    for name in names:
        find(name, options.scale)
    return names


def _check_changes(options: argparse.Namespace, names: list[str]) -> None:
    """Refuse a --set of a key that an ablation changes, of a part of it or of what holds it."""
    for change in options.set:
        key = re.split(r"[=\[]", change)[0].strip()
        if key == "seed":
            raise UserError(f"--set {change}: seeds are 0, 1, ...; give --seeds, their number")
        for name in names:
            for own in changes_of(name, options.scale):
                if f"{own}.".startswith(f"{key}.") or f"{key}.".startswith(f"{own}."):
                    raise UserError(
                        f"--set {key} is what the ablation {name} changes ({own}); leave it out"
                    )


def _run_all(
    options: argparse.Namespace, names: list[str], console: Console
) -> tuple[dict[str, list[dict[str, Json]]] | None, dict[str, str]]:
    """Results by name, seeds in the outer loop so that an early look compares all; failures."""
    from pyratok_jax.training.ablations.run import run_one

    workdir = Path(options.workdir)
    if workdir.is_file():
        raise UserError(f"--workdir {workdir} is a file; name a folder")
    keep_programs(workdir / "programs")
    results: dict[str, list[dict[str, Json]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    total = options.seeds * len(names)
    for seed in range(options.seeds):
        for number, name in enumerate(names):
            folder = workdir / name / f"seed_{seed}"
            console.print(f"[{seed * len(names) + number + 1}/{total}] {name}, seed {seed}")
            try:
                config = _config(options, name, seed)
                facts = _facts(options, config, name, seed)
                result = run_one(config, folder, starts=workdir / "starts", facts=facts)
            except Exception as error:  # One run's failure must not cost the others theirs.
                failed[str(folder)] = _reason(error)
                console.print(f"failed: {failed[str(folder)]}", soft_wrap=True)
                continue
            if result is None:
                return None, failed
            console.print(f"  PSNR {result['psnr']:.2f} dB, {result['seconds']:.0f} s")
            results[name].append(result)
    return results, failed


def _reason(error: Exception) -> str:
    """Why a run failed, in one line; of what nobody foresaw the traceback goes to stderr."""
    if isinstance(error, UserError):
        return str(error)
    if (reason := environment_reason(error)) is not None:
        return reason
    logging.getLogger(__name__).error("%s", "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {short(str(error))}"


def _config(options: argparse.Namespace, name: str, seed: int) -> "ConfigDict":
    from pyratok_jax.training.config import parse_flags

    flags = ["ablate", "--config", f"{options.config}:{name},{options.scale}"]
    flags += [f"--config.{change}" for change in options.set]
    config, _ = parse_flags(flags, default_config=options.config)
    config.seed = seed
    return config


def _facts(
    options: argparse.Namespace, config: "ConfigDict", name: str, seed: int
) -> dict[str, Json]:
    from pyratok_jax.training.run_record import results_hash

    ablation = ABLATIONS[name]
    return {
        "name": name,
        "seed": seed,
        "scale": options.scale,
        "set": sorted(options.set),
        "steps": config.steps,
        "config": results_hash(config),
        "group": ablation.group,
        "label": ablation.label,
        "published": list(ablation.published),
    }


def _explained() -> Table:
    table = Table("name", "group", "what", "scales")
    for name, one in ABLATIONS.items():
        table.add_row(name, one.group, one.label, ", ".join(one.scales))
    return table


if __name__ == "__main__":
    run_cli(main)
