"""What a source holds: numbers, broken files, and a sheet of pictures with captions."""

import base64
import collections
import html
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pyratok_jax.data.buckets import Bucket, assign_buckets
from pyratok_jax.data.sources.index import ClipIndex
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.decoding import Decoder
from pyratok_jax.data.video.files import BrokenVideoError, read_image, resize_image

_TILE, _TEXT = 224, 54


def summarise(
    records: Sequence[ClipRecord], index: ClipIndex, buckets: tuple[Bucket, ...]
) -> dict[str, Any]:
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


def html_page(source: str, summary: Mapping[str, Any], sheet: Image.Image) -> str:
    """A self-contained page with the numbers and the sheet."""
    data = io.BytesIO()
    sheet.save(data, "PNG")
    picture = base64.b64encode(data.getvalue()).decode()
    tables = "".join(
        f"<h2>{html.escape(key.replace('_', ' '))}</h2>{_table(value)}"
        for key, value in summary.items()
        if isinstance(value, (dict, list)) and value
    )
    numbers = {k: v for k, v in summary.items() if not isinstance(v, (dict, list))}
    return (
        "<!doctype html><meta charset='utf-8'><title>clips</title>"
        "<style>body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
        "td{padding:2px 12px 2px 0;border-bottom:1px solid #ddd}img{max-width:100%}</style>"
        f"<h1>{html.escape(source)}</h1>{_table(numbers)}"
        f"<p><img alt='contact sheet' src='data:image/png;base64,{picture}'></p>{tables}"
    )


def _table(values: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(values, Mapping):
        rows = [(key, value) for key, value in values.items()]
    else:
        rows = [tuple(entry.values()) for entry in values]
    cells = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"
