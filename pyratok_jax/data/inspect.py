"""Look at a source of clips before training: `python -m pyratok_jax.data.inspect --help`."""

import argparse
import collections
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from pyratok_jax.data.buckets import Bucket, assign_buckets, parse_buckets
from pyratok_jax.data.sources.index import ClipIndex, index_clips
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.decoding import Decoder
from pyratok_jax.data.video.files import BrokenVideoError, read_image, resize_image
from pyratok_jax.errors import EXIT_PARTIAL, UserError, run_cli
from pyratok_jax.io import Json, html
from pyratok_jax.io.atomic import write_json, write_png, write_text
from pyratok_jax.io.cli import command_parser
from pyratok_jax.io.progress import PlainConsole
from pyratok_jax.io.sharded_job import check_output

_TILE, _TEXT = 224, 54
Summary = dict[str, Json]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.data.inspect",
        "Counts, resolutions, durations, caption lengths, buckets and broken files of "
        "a source, and a contact sheet as PNG and HTML.",
        examples=["my_videos --output inspection", "videos.csv --buckets 17x256x256"],
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


def print_summary(summary: Mapping[str, Json], console: Console) -> None:
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


def summarise(
    records: Sequence[ClipRecord], index: ClipIndex, buckets: tuple[Bucket, ...]
) -> Summary:
    """Counts, resolutions, durations, caption lengths, buckets and broken files, as plain JSON.

    Captions are taken from at most 100,000 clips, evenly spread.
    """
    finite = index.seconds[np.isfinite(index.seconds)]
    sizes = collections.Counter(
        f"{int(w)}x{int(h)}" for w, h in zip(index.width, index.height, strict=True)
    )
    fits = np.zeros((0, len(buckets)), bool)
    if len(index.number):
        fits = assign_buckets(buckets, index.height, index.width, index.seconds, index.fps)
    words = [len((caption or "").split()) for caption in _captions(records)]
    with_caption = [count for count in words if count]
    return {
        "clips": len(records),
        "readable": len(index.number),
        "broken": len(index.broken),
        "still_images": int(np.isinf(index.seconds).sum()),
        "hours": round(float(finite.sum()) / 3600, 6),
        "seconds_per_clip": _quantiles(finite),
        "fps": dict(collections.Counter(f"{f:.3g}" for f in index.fps).most_common(10)),
        "resolutions": dict(sizes.most_common(20)),
        "captions_missing": len(words) - len(with_caption),
        "caption_words": _quantiles(np.array(with_caption, float)),
        "buckets": {b.name: int(fits[:, i].sum()) for i, b in enumerate(buckets)},
        "broken_files": [{"path": path, "reason": reason} for path, reason in index.broken],
    }


def _captions(records: Sequence[ClipRecord]) -> list[str | None]:
    captions = []
    for number in np.unique(np.linspace(0, len(records) - 1, 100_000).astype(int)):
        try:
            captions.append(records[int(number)].caption)
        except BrokenVideoError:
            continue
    return captions


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    names = {"least": 0, "10%": 0.1, "median": 0.5, "90%": 0.9, "most": 1}
    return {name: round(float(np.quantile(values, q)), 3) for name, q in names.items()}


def contact_sheet(
    records: Sequence[ClipRecord], index: ClipIndex, decoder: Decoder, count: int, columns: int = 6
) -> tuple[Image.Image, list[tuple[str, str]]]:
    """Middle frames of evenly spread clips with size, length and caption.

    Returns:
        The sheet, and (path, reason) of the clips that turned out broken only when decoded.
    """
    rows = np.unique(np.linspace(0, len(index.number) - 1, min(count, len(index.number))))
    tiles, broken = [], []
    for row in rows.astype(int):
        record = records[int(index.number[row])]
        try:
            tiles.append(_tile(record, index, int(row), decoder))
        except BrokenVideoError as error:
            broken.append((error.path, error.reason))
    height = -(-max(len(tiles), 1) // columns) * (_TILE + _TEXT)
    sheet = Image.new("RGB", (columns * _TILE, height), "white")
    for number, tile in enumerate(tiles):
        at = (number % columns * _TILE, number // columns * (_TILE + _TEXT))
        sheet.paste(tile, at)
    return sheet, broken


def _tile(record: ClipRecord, index: ClipIndex, row: int, decoder: Decoder) -> Image.Image:
    height, width = int(index.height[row]), int(index.width[row])
    seconds, fps = float(index.seconds[row]), float(index.fps[row])
    scale = (_TILE - 6) / max(height, width)
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    still = not np.isfinite(seconds)
    if record.stored is not None:
        frame = resize_image(read_image(record.stored[len(record.stored) // 2]), size)
    else:
        middle = (record.start or 0.0) + (0.0 if still else seconds / 2)
        frame = decoder.clip(record.media, start=middle, frames=1, size=size)[0]
    tile = Image.new("RGB", (_TILE, _TILE + _TEXT), "white")
    tile.paste(Image.fromarray(frame), (3, (_TILE - size[0]) // 2))
    length = "image" if still else f"{seconds:.1f} s, {fps:.3g} fps"
    lines = [f"{width}x{height}, {length}", *_wrapped(record.caption or "(no caption)", 36, 3)]
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(10)
    for number, line in enumerate(lines):
        draw.text((4, _TILE + 12 * number), line, fill="black" if number else "gray", font=font)
    return tile


def _wrapped(text: str, width: int, lines: int) -> list[str]:
    return textwrap.wrap(text, width, max_lines=lines, placeholder=" ...")


def html_page(source: str, summary: Summary, sheet: Image.Image) -> str:
    """A self-contained page with the numbers and the sheet."""
    numbers = [
        (key.replace("_", " "), value)
        for key, value in summary.items()
        if not isinstance(value, (dict, list))
    ]
    sections = [
        html.section(key.replace("_", " "), html.table(_rows(value)))
        for key, value in summary.items()
        if isinstance(value, (dict, list))
    ]
    picture = html.picture(sheet, "contact sheet")
    return html.document(source, [html.table(numbers), html.section("Clips", picture), *sections])


def _rows(values: Mapping[str, Json] | Sequence[Mapping[str, Json]]) -> list[tuple[Any, ...]]:
    if isinstance(values, Mapping):
        return list(values.items())
    return [tuple(entry.values()) for entry in values]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments, console = parser().parse_args(argv), PlainConsole()
    for name, least in (("limit", 0), ("pictures", 0), ("threads", 1)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} {getattr(arguments, name)}: expected at least {least}")
    buckets = parse_buckets(arguments.buckets)
    output = check_output(arguments.output)
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.data.sources.registry import load_source

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
    write_json(output / "summary.json", summary)
    write_text(output / "report.html", html_page(arguments.source, summary, sheet))
    write_png(output / "contact_sheet.png", sheet)
    for name in ("contact_sheet.png", "report.html", "summary.json"):
        console.print(f"written: {output / name}", soft_wrap=True)
    return EXIT_PARTIAL if summary["broken"] else 0


if __name__ == "__main__":
    run_cli(main)
