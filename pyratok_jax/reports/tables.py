"""Tables of quality and rate: which columns there are and how their values are written."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pyratok_jax.io import html, markdown

# Key, heading, format. Keys that are not here follow in their own order, as they are.
_COLUMNS = (
    ("psnr", "PSNR ↑", "{:.2f}"),
    ("psnr_video", "PSNR of video ↑", "{:.2f}"),
    ("ssim", "SSIM ↑", "{:.4f}"),
    ("ssim_uniform", "SSIM 7×7 ↑", "{:.4f}"),
    ("lpips", "LPIPS ↓", "{:.4f}"),
    ("lpips_alex", "LPIPS Alex ↓", "{:.4f}"),
    ("bpp", "bpp", "{:.4f}"),
    ("utilisation", "use", "{:.1%}"),
    ("perplexity", "perplexity", "{:.0f}"),
)
_HIDDEN = ("name", "role")
_PER_LEVEL = ("utilisation", "perplexity")

Row = Mapping[str, Any]


def expand_levels(row: Row) -> dict[str, Any]:
    """A row in which values per level (lists, or `levels` entries) have a column each.

    `utilisation` may be one number, a list of numbers, or come within `levels`, a list of what
    `metrics.code_usage.CodeUsage.summary` returns.
    """
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key == "levels" and isinstance(value, Sequence) and not isinstance(value, str):
            for number, level in enumerate(value, start=1):
                flat |= {f"{name} {number}": level.get(name) for name in _PER_LEVEL}
        elif isinstance(value, (list, tuple)):
            flat |= {f"{key} {number}": entry for number, entry in enumerate(value, start=1)}
        else:
            flat[key] = value
    return flat


def columns_of(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(key, heading, format) of the columns that at least one expanded row fills."""
    used = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    columns = []
    for key, heading, style in _COLUMNS:
        if key in used:
            columns.append((key, heading, style))
        levels = [name for name in used if name.rpartition(" ")[0] == key]
        columns += [(name, f"{heading} L{name.rpartition(' ')[2]}", style) for name in levels]
    known = {key for key, _, _ in columns}
    rest = [key for key in used if key not in known and key not in _HIDDEN]
    return columns + [(key, key.replace("_", " "), "{}") for key in rest]


def write_value(value: object, style: str) -> str:
    """One cell: a dash for None, the column's format for numbers, text as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or style == "{}":
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return style.format(value)


def html_table(rows: Sequence[Row]) -> Markup:
    """The table as HTML; rows with role "model" stand out. Empty without rows."""
    expanded = [expand_levels(row) for row in rows]
    columns = columns_of(expanded)
    return html.table(
        [
            [row.get("name", ""), *(write_value(row.get(key), style) for key, _, style in columns)]
            for row in expanded
        ],
        head=["", *(heading for _, heading, _ in columns)],
        classes=["model" if row.get("role") == "model" else "" for row in expanded],
    )


def markdown_table(rows: Sequence[Row]) -> str:
    """The same table in Markdown, for notes and papers."""
    rows = [expand_levels(row) for row in rows]
    columns = columns_of(rows)
    lines = ["| | " + " | ".join(markdown.cell(heading) for _, heading, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row in rows:
        cells = (markdown.cell(write_value(row.get(key), style)) for key, _, style in columns)
        lines.append(f"| {markdown.cell(row.get('name', ''))} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _gains(psnr: float, by_role: Mapping[Any, Row]) -> list[tuple[float, str]]:
    """What each part of the making of a model gave, in dB: calibration, then training steps."""
    random = by_role.get("step0", {}).get("psnr")
    calibrated = by_role.get("calibrated", {}).get("psnr")
    if calibrated is None:
        return [] if random is None else [(psnr - random, "over the model at step 0")]
    gains = [(psnr - calibrated, "from the training steps")]
    if random is not None:
        gains.insert(0, (calibrated - random, "from calibration or the stage before"))
    return gains


def code_use_table(rows: Sequence[Row]) -> Markup:
    """How many different codes the tokens of each level hold, of those that they could hold.

    n tokens hold at most n different codes: the share is of the smaller of tokens and vocabulary.
    Nothing without a row that has `levels` (`CodeUsage.summary`).
    """
    cells = []
    for row in rows:
        for level in row.get("levels") or ():
            vocabulary = level["distinct"] + level["dead"]
            possible = min(level["tokens"], vocabulary)
            share = f"{level['distinct'] / possible:.1%}" if possible else "–"
            cells.append(
                [f"level {level['level']}", level["tokens"], level["distinct"], share, vocabulary,
                 f"{level['perplexity']:.0f}"]
            )  # fmt: skip
    head = ["", "tokens", "different codes", "of those possible", "vocabulary", "perplexity"]
    return html.table(cells, head)


def headline(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(figure, unit, what it is) of the numbers that answer first how good the model is."""
    by_role = {row.get("role"): row for row in rows}
    model = by_role.get("model", {})
    tiles = []
    psnr = model.get("psnr")
    if psnr is not None:
        tiles.append((f"{psnr:.2f}", "dB", "PSNR of the reconstruction"))
        tiles += [(f"{gain:+.2f}", "dB", text) for gain, text in _gains(psnr, by_role)]
        ceiling = by_role.get("ceiling", {}).get("psnr")
        if ceiling is not None:
            where = "below" if ceiling >= psnr else "above"
            tiles.append((f"{abs(ceiling - psnr):.2f}", "dB", f"{where} the unquantised ceiling"))
    if model.get("lpips") is not None:
        tiles.append((f"{model['lpips']:.3f}", "", "LPIPS, lower is better"))
    if model.get("bpp") is not None:
        tiles.append((f"{model['bpp']:.4f}", "bit/pixel", "rate of all tokens"))
    return tiles
