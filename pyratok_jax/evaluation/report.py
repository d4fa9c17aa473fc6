"""Files that a finished run leaves: results.json, row.md and report.html, with others' numbers."""

import hashlib
import importlib.metadata
import math
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

import pyratok_jax
from pyratok_jax.errors import short
from pyratok_jax.evaluation.engine import Gathered
from pyratok_jax.evaluation.peers import MARK, PEERS, Cells, comparison, number
from pyratok_jax.evaluation.task import Metrics, Partial, Picture, Task
from pyratok_jax.io import Json, html, markdown, text_bytes
from pyratok_jax.io.atomic import write_json, write_text
from pyratok_jax.io.cli import say
from pyratok_jax.reports.curves import rate_chart, rate_distortion_png
from pyratok_jax.reports.tables import html_table, markdown_table

_PACKAGES = ("jax", "flax", "numpy", "scipy", "av", "trackeval", "pycocotools", "dm-pix")
# Entries of results.json that the page shows folded.
_RECORD = (
    "data", "split", "limit", "resolution", "frames", "bpp", "items", "checkpoint", "versions",
)  # fmt: skip
_LISTED = 200  # Broken items on the page.


def versions() -> dict[str, str]:
    """Versions of this code and of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"pyratok-jax": importlib.metadata.version("pyratok-jax"), "code": _commit()}


def _commit() -> str:
    """The commit of the source tree, marked when it has changes; `unknown` outside of one."""
    folder = Path(pyratok_jax.__file__).parent
    try:
        words = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def clip_summary(partials: Mapping[str, Partial]) -> dict[str, Json]:
    """Resolution, frames and bits per pixel over the evaluated clips, from their key `clip`."""
    clips = [p["clip"] for p in partials.values() if p.get("clip")]
    if not clips:
        return {"resolution": None, "frames": None, "bpp": None}
    sizes = Counter(f"{c['width']}x{c['height']}" for c in clips)
    frames = [c["frames"] for c in clips]
    coded = [c for c in clips if c.get("bits") is not None]
    pixels = sum(c["frames"] * c["height"] * c["width"] for c in coded)
    return {
        "resolution": dict(sizes.most_common(20)),
        "frames": {
            "least": min(frames),
            "most": max(frames),
            "mean": sum(frames) / len(frames),
        },
        "bpp": sum(c["bits"] for c in coded) / pixels if pixels else None,
    }


def summarise(
    task: Task,
    gathered: Gathered,
    *,
    checkpoint: str,
    checkpoint_hash: str,
    limit: int,
    method: str = "",
    facts: Mapping[str, Json] | None = None,
) -> dict[str, Json]:
    """Everything that results.json holds.

    Args:
        task: what was run.
        gathered: its partial results.
        checkpoint: as the command line names it.
        checkpoint_hash: of the model.
        limit: of items; 0: none.
        method: the row's name, by default after the hash.
        facts: `Task.checkpoint_facts`.
    """
    total = len(gathered.partials) + len(gathered.broken)
    metrics = task.aggregate(gathered.partials) if gathered.partials else {}
    protocol = task.protocol()
    return {
        "task": task.name,
        "method": method or f"PyraTok-JAX {checkpoint_hash[:12]}".strip(),
        "metrics": plain(metrics),
        "protocol": plain(protocol),
        "split": protocol.get("split"),
        "data": str(task.data),
        "limit": limit or None,
        **clip_summary(gathered.partials),
        "items": {"total": total, "evaluated": len(gathered.partials)},
        "items_hash": _hash(gathered.partials),
        "broken": [{"id": name, "reason": why} for name, why in gathered.broken.items()],
        "checkpoint": {"name": checkpoint, "hash": checkpoint_hash, **(facts or {})},
        "versions": versions(),
        "peers": [vars(peer) for peer in PEERS.get(task.name, ())],
    }


def _hash(ids: Iterable[str]) -> str:
    """Of the evaluated items, in whatever order."""
    return hashlib.sha256(text_bytes("\n".join(sorted(ids)))).hexdigest()[:16]


def plain(value: object) -> Json:
    """JSON-able form of nested values; what is not a finite number becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def paper_row(task: Task, results: Mapping[str, Json]) -> Cells:
    """A table of one row, ready for a paper, with what belongs beside its numbers."""
    titles = [title for _, title, _ in task.row_columns()]
    cells = [number(results["metrics"].get(key), digits) for key, _, digits in task.row_columns()]
    sizes = results["resolution"] or {}
    size = next(iter(sizes), "-") + (f" (+{len(sizes) - 1})" if len(sizes) > 1 else "")
    frames = results["frames"]
    span = "-"
    if frames:
        low, high = frames["least"], frames["most"]
        span = f"{low}" if low == high else f"{low}-{high}"
    items = results["items"]
    row = [
        results["method"],
        *cells,
        number(results["bpp"], 4),
        size,
        span,
        f"{items['evaluated']} of {items['total']}",
    ]
    return ["method", *titles, "bpp", "size", "frames", task.counted], [row]


def _markdown(cells: Cells) -> str:
    head, rows = cells
    lines = (map(markdown.cell, head), ["---"] * len(head), *(map(markdown.cell, r) for r in rows))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def markdown_row(task: Task, results: Mapping[str, Json]) -> str:
    """`paper_row` in Markdown."""
    return _markdown(paper_row(task, results))


def comparison_table(
    task: Task, results: Mapping[str, Json], others: Sequence[Mapping[str, Json]] = ()
) -> str:
    """`peers.comparison` in Markdown; empty where there is nothing to compare with."""
    cells = comparison(task, results, others)
    if not cells[1]:
        return ""
    return f"Beside others ({MARK}, where the source says so):\n\n{_markdown(cells)}"


def write_results(
    output: Path,
    task: Task,
    gathered: Gathered,
    results: Mapping[str, Json],
    others: Sequence[Mapping[str, Json]] = (),
) -> list[Path]:
    """Write results.json, row.md with the task's tables, report.html, and the chart if it has one.

    Returns:
        The files.
    """
    tables = task.tables(results["metrics"])
    texts = [f"{name}:\n\n{markdown_table(rows)}" for name, rows in tables.items() if rows]
    texts = [markdown_row(task, results), *texts, comparison_table(task, results, others)]
    written = [output / name for name in ("results.json", "row.md", "report.html")]
    write_json(written[0], results)
    write_text(written[1], "\n".join(texts))
    pictures = _pictures(output, task, gathered)
    write_text(written[2], report_page(task, results, pictures, output, others))
    series = task.rate_distortion(results["metrics"])
    if series:
        written.append(rate_distortion_png(series, output / "rate_distortion.png"))
    return written


def _pictures(output: Path, task: Task, gathered: Gathered) -> list[Picture]:
    """The task's pictures; an error here is printed and the numbers are written all the same."""
    folder = output / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return task.pictures(gathered.partials, folder) if gathered.partials else []
    except Exception as error:
        say(f"no pictures: {short(str(error))}")
        return []


def report_page(
    task: Task,
    results: Mapping[str, Json],
    pictures: Sequence[Picture],
    folder: Path,
    others: Sequence[Mapping[str, Json]] = (),
) -> str:
    """The page: the row, tables, chart, all metrics, pictures, broken items, protocol, peers.

    Args:
        task: what was run.
        results: as `summarise` makes them.
        pictures: files below `folder`; they become part of the page.
        folder: the run's output.
        others: results of other runs of the same protocol.
    """
    broken = results["broken"]
    tables, series = task.tables(results["metrics"]), task.rate_distortion(results["metrics"])
    head, rows = comparison(task, results, others)
    reasons = html.pairs({entry["id"]: entry["reason"] for entry in broken[:_LISTED]})
    record = {key: results[key] for key in _RECORD}
    sections = [
        html.paragraph(task.description),
        html.table(paper_row(task, results)[1], paper_row(task, results)[0]),
        *(html.section(name, html_table(rows)) for name, rows in tables.items()),
        html.section("Rate and distortion", rate_chart(series)),
        html.section("Pictures", *(_figure(picture, folder) for picture in pictures)),
        html.section(f"Items without a result: {len(broken)}", reasons),
        html.section("Metrics", _folded("All metrics", results["metrics"])),
        html.section("Others", *_peers(head, rows)),
        html.section(
            "Protocol and record", html.pairs(results["protocol"]), _folded("Record", record)
        ),
    ]
    return html.document(f"Evaluation: {task.name}", sections)


def _peers(head: list[str], rows: list[list[str]]) -> list[Markup]:
    note = html.paragraph(f"Figures that are {MARK}, are marked so.", faint=True)
    return [note, html.table(rows, head)] if rows else []


def _folded(summary: str, values: Metrics) -> Markup:
    shortened = {key: _short(value) for key, value in values.items()}
    return html.folded(summary, html.pairs(shortened))


def _short(value: Json) -> Json:
    """A value of the metrics with few digits and at most 40 entries of a list."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return {key: _short(entry) for key, entry in value.items()}
    if isinstance(value, list):
        shown = [_short(entry) for entry in value[:40]]
        return [*shown, f"... {len(value)} in all"] if len(value) > len(shown) else shown
    return value


def _figure(picture: Picture, folder: Path) -> Markup:
    image = html.picture((folder / picture.file).read_bytes(), picture.caption)
    caption = html.paragraph(picture.caption, faint=True)
    return Markup("<article class='card'>{}{}</article>").format(caption, image)
