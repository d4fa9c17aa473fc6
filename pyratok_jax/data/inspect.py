"""Look at a source of clips before training: `python -m pyratok_jax.data.inspect --help`."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pyratok_jax.data.buckets import parse_buckets
from pyratok_jax.data.inspecting import contact_sheet, html_page, summarise
from pyratok_jax.data.sources.index import index_clips
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.decoding import Decoder
from pyratok_jax.errors import UserError, run_cli


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m pyratok_jax.data.inspect",
        description="Counts, resolutions, durations, caption lengths, buckets and broken files of "
        "a source, and a contact sheet as PNG and HTML.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("source", help="folder, manifest, shards, tfds:NAME:SPLIT or builtin:demo")
    p.add_argument("--output", default="inspection", help="folder for the sheet and the report")
    p.add_argument(
        "--buckets",
        nargs="+",
        default=["17x256x256", "17x192x256", "17x176x256", "17x144x256", "17x128x256"],
        help="frames x height x width",
    )
    p.add_argument("--limit", type=int, default=0, help="look at the first clips only; 0: all")
    p.add_argument("--pictures", type=int, default=36, help="clips on the contact sheet")
    p.add_argument("--threads", type=int, default=4, help="files opened at the same time")
    p.add_argument("--time-limit", type=float, default=30.0, help="seconds per file")
    return p


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """The numbers as tables on the console."""
    plain = Table(show_header=False, box=None)
    for key, value in summary.items():
        if not isinstance(value, (dict, list)):
            plain.add_row(key.replace("_", " "), str(value))
    console.print(plain)
    for key, value in summary.items():
        if isinstance(value, dict) and value:
            table = Table(title=key.replace("_", " "), show_header=False, title_justify="left")
            for name, number in value.items():
                table.add_row(str(name), str(number))
            console.print(table)
    for entry in summary["broken_files"][:50]:
        console.print(f"broken: {entry['path']}: {entry['reason']}", soft_wrap=True, markup=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments, console = parser().parse_args(argv), Console()
    buckets = parse_buckets(arguments.buckets)
    output = Path(arguments.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    records = load_source(arguments.source)
    if arguments.limit:
        records = records[: arguments.limit]
    decoder = Decoder(arguments.time_limit)
    with console.status(f"reading {len(records)} clips"):
        index = index_clips(records, decoder, arguments.threads)
        summary = summarise(records, index, buckets)
        sheet, late = contact_sheet(records, index, decoder, arguments.pictures)
    summary["broken_files"] += [{"path": path, "reason": reason} for path, reason in late]
    summary["broken"] += len(late)
    summary["readable"] -= len(late)
    print_summary(summary, console)
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "summary.json", json.dumps(summary, indent=1).encode())
    _write(output / "report.html", html_page(arguments.source, summary, sheet).encode())
    sheet.save(output / ".contact_sheet.part", "PNG")
    os.replace(output / ".contact_sheet.part", output / "contact_sheet.png")
    for name in ("contact_sheet.png", "report.html", "summary.json"):
        console.print(f"written: {output / name}", soft_wrap=True)


def _write(path: Path, data: bytes) -> None:
    scratch = path.parent / f".{path.name}.part"
    scratch.write_bytes(data)
    os.replace(scratch, path)


if __name__ == "__main__":
    run_cli(main)
