"""The report of a run as one HTML page that needs no other file."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyratok_jax.evaluation.framework import Picture, Task
from pyratok_jax.evaluation.peers import peer_table
from pyratok_jax.reports.page import document, pairs, rate_chart, section
from pyratok_jax.reports.tables import html_table

_RECORD = (
    "data", "split", "limit", "resolution", "frames", "bpp", "items", "checkpoint", "versions",
)  # fmt: skip
_LISTED = 200


def report_page(
    task: Task,
    results: Mapping[str, Any],
    row: str,
    pictures: Sequence[Picture],
    folder: Path,
) -> str:
    """The page: the row, tables, chart, all metrics, pictures, broken items, protocol, peers.

    Args:
        task: what was run.
        results: as `results.summarise` makes them.
        row: the markdown row.
        pictures: files below `folder`; they become part of the page.
        folder: the run's output.
    """
    broken = results["broken"]
    tables, series = task.tables(results["metrics"]), task.rate_distortion(results["metrics"])
    drawn = "".join(_figure(picture, folder) for picture in pictures)
    reasons = pairs({entry["id"]: entry["reason"] for entry in broken[:_LISTED]})
    peers = peer_table(task.name)
    sections = [
        f"<p>{html.escape(task.description)}</p>{_table(row)}",
        *(section(html.escape(name), html_table(rows), rows) for name, rows in tables.items()),
        section("Rate and distortion", rate_chart(series), series),
        section("Pictures", drawn, pictures),
        section(f"Items without a result: {len(broken)}", reasons, broken),
        section("Metrics", _folded("All metrics", results["metrics"]), results["metrics"]),
        section("Others", _table(peers), peers),
        section(
            "Protocol and record",
            pairs(results["protocol"]) + _folded("Record", {k: results[k] for k in _RECORD}),
            True,
        ),
    ]
    return document(f"Evaluation: {task.name}", sections)


def _folded(summary: str, values: Mapping[str, Any]) -> str:
    shortened = {key: _short(value) for key, value in values.items()}
    return f"<details><summary>{summary}</summary>{pairs(shortened)}</details>"


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return {key: _short(entry) for key, entry in value.items()}
    if isinstance(value, list):
        shown = [_short(entry) for entry in value[:40]]
        return [*shown, f"... {len(value)} in all"] if len(value) > len(shown) else shown
    return value


def _figure(picture: Picture, folder: Path) -> str:
    caption = html.escape(picture.caption)
    data = base64.b64encode((folder / picture.file).read_bytes()).decode()
    image = f"<img class='source' alt='{caption}' src='data:image/png;base64,{data}'>"
    return f"<article class='clip'><p class='faint small'>{caption}</p>{image}</article>"


def _table(markdown: str) -> str:
    """A markdown table (text before it becomes a paragraph) as HTML."""
    lines = markdown.strip().splitlines()
    text = " ".join(line for line in lines if line and not line.startswith("|"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    if len(rows) < 3:
        return ""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr><th scope='row'>{html.escape(first)}</th>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for first, *cells in rows[2:]
    )
    note = f"<p class='faint small'>{html.escape(text)}</p>" if text else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"{note}<div class='scroll'>{table}</div>"
