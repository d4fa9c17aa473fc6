"""Compare trainings: `python -m pyratok_jax.report --help`."""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence

from rich.table import Table

from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io import Json, html
from pyratok_jax.io.atomic import write_text
from pyratok_jax.io.cli import command_parser
from pyratok_jax.io.documents import read_json
from pyratok_jax.io.progress import PlainConsole
from pyratok_jax.io.remote import AnyPath, any_path
from pyratok_jax.training.config_keys import flattened

_MEASURES = ("psnr", "psnr_video", "ssim", "lpips", "bpp")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.report",
        "Compare trainings: figures on their held-out clips, and how their configs differ.",
        examples=["runs/a runs/b --output comparison.html"],
    )
    p.add_argument("runs", nargs="+", help="working folders of trainings")
    p.add_argument("--output", default="", help="also write the tables as an HTML page")
    return p


@dataclasses.dataclass(frozen=True)
class _Figures:
    """Of a run's `metrics.json`: its rows of held-out clips."""

    steps: int | None = None
    heldout: list[dict[str, Json]] = dataclasses.field(default_factory=list)


def results_of(run: AnyPath) -> dict[str, Json]:
    """The figures of a run's trained model, with the step.

    Raises:
        UserError: the folder holds no report.
    """
    if not (run / "metrics.json").exists():
        raise UserError(f"{run} has no metrics.json: it holds no finished training")
    content = read_json(run / "metrics.json", _Figures)
    rows = [row for row in content.heldout if row.get("role") == "model"]
    if not rows:
        raise UserError(f"{run}/metrics.json has no row of the trained model")
    return {"steps": content.steps} | {name: rows[0].get(name) for name in _MEASURES}


def differences(configs: Sequence[Mapping[str, Json]]) -> list[tuple[str, list[str]]]:
    """Keys whose values are not the same in all configs, and the value in each ("-": no such key).

    Args:
        configs: the content of `config.json` of each run.
    """
    flat = [dict(flattened(config)) for config in configs]
    found = []
    for key in sorted({key for values in flat for key in values}):
        values = [json.dumps(one[key]) if key in one else "-" for one in flat]
        if len(set(values)) > 1:
            found.append((key, values))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, console = parser().parse_args(argv), PlainConsole()
    runs = [any_path(run) for run in arguments.runs]
    figures = [results_of(run) for run in runs]
    configs = [read_json(run / "config.json", dict[str, Json]) for run in runs]
    heads = ["", *(str(run) for run in runs)]
    rows = [[name, *(_shown(one[name]) for one in figures)] for name in ("steps", *_MEASURES)]
    changed = [[key, *values] for key, values in differences(configs)]
    for title, lines in (("held-out clips", rows), ("configs differ in", changed)):
        table = Table(*heads, title=title, title_justify="left")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    if arguments.output:
        sections = [
            html.section("Held-out clips", html.table([heads, *rows])),
            html.section("Differences of the configs", html.table([heads, *changed])),
        ]
        write_text(any_path(arguments.output), html.document("Comparison of trainings", sections))
        console.print(f"written: {arguments.output}", soft_wrap=True)


def _shown(value: Json) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


if __name__ == "__main__":
    run_cli(main)
