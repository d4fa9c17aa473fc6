"""Files that a finished run leaves: results.json, row.md and report.html, with published numbers.

The numbers of other methods and of the paper stand beside a result for comparison. None of them
was measured by this project, and every print-out says so. Where a paper's table names no rate, none
is given.
"""

import dataclasses
import importlib.metadata
import math
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

import pyratok_jax
from pyratok_jax.evaluation.engine import Gathered
from pyratok_jax.evaluation.task import Metrics, Partial, Picture, Task
from pyratok_jax.io import html
from pyratok_jax.io.atomic import write_json, write_text
from pyratok_jax.reports.curves import rate_chart, rate_distortion_png
from pyratok_jax.reports.tables import html_table, markdown_cell, markdown_table

MARK = "published, not measured here"
_PACKAGES = ("jax", "flax", "numpy", "scipy", "av", "trackeval", "pycocotools", "dm-pix")
# Entries of results.json that the page shows folded.
_RECORD = (
    "data", "split", "limit", "resolution", "frames", "bpp", "items", "checkpoint", "versions",
)  # fmt: skip
_LISTED = 200  # Broken items on the page.

# Head and rows of a table, as text.
Cells = tuple[list[str], list[list[str]]]


@dataclasses.dataclass(frozen=True)
class Peer:
    """One published row: values by the metric's title, and what to know to compare it."""

    method: str
    benchmark: str
    values: dict[str, float]
    note: str = ""


def _reconstruction(rows: dict[str, tuple[float, ...]]) -> tuple[Peer, ...]:
    titles = ("PSNR", "SSIM", "LPIPS")
    peers = []
    for method, numbers in rows.items():
        for benchmark, values in (("WebVid-10M val", numbers[:3]), ("COCO val", numbers[3:])):
            peers.append(Peer(method, benchmark, dict(zip(titles, values, strict=True))))
    return tuple(peers)


_PYRATOK = "PyraTok (paper)"

RECONSTRUCTION = (
    *_reconstruction(
        {
            "CogVideoX": (29.92, 0.811, 0.141, 30.11, 0.833, 0.111),
            "3D-MBQ-VAE": (33.00, 0.848, 0.092, 32.11, 0.858, 0.108),
            "Wan 2.2": (32.94, 0.841, 0.101, 33.43, 0.861, 0.103),
            "OmniTokenizer": (32.03, 0.812, 0.152, 32.09, 0.845, 0.141),
            "LARP": (33.03, 0.851, 0.091, 34.26, 0.853, 0.089),
            "VideoVAE+": (29.17, 0.812, 0.201, 31.45, 0.832, 0.162),
            "TokLIP": (31.28, 0.837, 0.152, 33.42, 0.849, 0.105),
            "SweetTok": (32.32, 0.842, 0.137, 32.78, 0.847, 0.123),
            _PYRATOK: (35.72, 0.879, 0.066, 36.05, 0.885, 0.071),
        }
    ),
    Peer("Cosmos-DV 4x8x8", "TokenBench", {"PSNR": 35.14, "SSIM": 0.887, "bpp": 0.062}),
    Peer("Cosmos-DV 8x8x8", "TokenBench", {"PSNR": 34.75, "SSIM": 0.872, "bpp": 0.031}),
    Peer(
        "VidTok FSQ-262144 4x8x8",
        "MCL-JCV",
        {"PSNR": 29.82, "SSIM": 0.867, "LPIPS": 0.106},
        "17 frames of 256x256",
    ),
)
COMPRESSION = (
    Peer(_PYRATOK, "MCL-JCV", {"PSNR": 29.82, "SSIM": 0.942, "LPIPS": 0.068, "bpp": 0.034}),
)
SEGMENTATION = (
    Peer(_PYRATOK, "YouTube-VIS 2021", {"mAP": 24.54, "J": 66.56}, "zero-shot"),
    Peer(_PYRATOK, "OVIS", {"mAP": 8.9, "J": 49.44}, "zero-shot"),
)
LOCALIZATION = (
    Peer(_PYRATOK, "THUMOS14", {"avg mAP": 33.17}, "zero-shot, IoU .3:.1:.7"),
    Peer(_PYRATOK, "ActivityNet v1.3", {"avg mAP": 29.11}, "zero-shot, IoU .5:.05:.95"),
)
CLASSIFICATION = (
    Peer(_PYRATOK, "Kinetics-400", {"top-1": 78.43}, "zero-shot"),
    Peer(_PYRATOK, "Kinetics-600", {"top-1": 77.11}, "zero-shot"),
    Peer(_PYRATOK, "Kinetics-700", {"top-1": 74.08}, "zero-shot"),
)
VQA = (Peer(_PYRATOK, "MVBench", {"accuracy": 86.03}),)
CODEBOOK = (
    Peer(_PYRATOK, "240p", {"utilisation %": 55.0}),
    Peer(_PYRATOK, "4320p", {"utilisation %": 97.0}),
)

PEERS: dict[str, tuple[Peer, ...]] = {
    "reconstruction": RECONSTRUCTION,
    "compression": COMPRESSION,
    "segmentation": SEGMENTATION,
    "localization": LOCALIZATION,
    "classification": CLASSIFICATION,
    "vqa": VQA,
    "codebook": CODEBOOK,
}


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


def clip_summary(partials: Mapping[str, Partial]) -> dict[str, Any]:
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
    task: Task, gathered: Gathered, *, checkpoint: str, checkpoint_hash: str, limit: int
) -> dict[str, Any]:
    """Everything that results.json holds."""
    total = len(gathered.partials) + len(gathered.broken)
    metrics = task.aggregate(gathered.partials) if gathered.partials else {}
    protocol = task.protocol()
    return {
        "task": task.name,
        "metrics": plain(metrics),
        "protocol": plain(protocol),
        "split": protocol.get("split"),
        "data": str(task.data),
        "limit": limit or None,
        **clip_summary(gathered.partials),
        "items": {"total": total, "evaluated": len(gathered.partials)},
        "broken": [{"id": name, "reason": why} for name, why in gathered.broken.items()],
        "checkpoint": {"name": checkpoint, "hash": checkpoint_hash},
        "versions": versions(),
        "peers": [vars(peer) for peer in PEERS.get(task.name, ())],
    }


def plain(value: Any) -> Any:
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


def paper_row(task: Task, results: Mapping[str, Any]) -> Cells:
    """A table of one row, ready for a paper, with what belongs beside its numbers."""
    titles = [title for _, title, _ in task.columns]
    cells = [_number(results["metrics"].get(key), digits) for key, _, digits in task.columns]
    sizes = results["resolution"] or {}
    size = next(iter(sizes), "-") + (f" (+{len(sizes) - 1})" if len(sizes) > 1 else "")
    frames = results["frames"]
    span = "-"
    if frames:
        low, high = frames["least"], frames["most"]
        span = f"{low}" if low == high else f"{low}-{high}"
    items = results["items"]
    row = [
        f"PyraTok-JAX {results['checkpoint']['hash'][:12]}".strip(),
        *cells,
        _number(results["bpp"], 4),
        size,
        span,
        f"{items['evaluated']} of {items['total']}",
    ]
    return ["method", *titles, "bpp", "size", "frames", "videos"], [row]


def _number(value: object, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "-"


def peer_rows(task: str) -> Cells:
    """The published numbers of a task; no rows where there are none."""
    peers = PEERS.get(task, ())
    titles = list(dict.fromkeys(title for peer in peers for title in peer.values))
    rows = []
    for peer in peers:
        values = [f"{peer.values[title]:g}" if title in peer.values else "" for title in titles]
        rows.append([peer.method, peer.benchmark, *values, peer.note])
    return ["method", "benchmark", *titles, "note"], rows


def _markdown(cells: Cells) -> str:
    head, rows = cells
    lines = (map(markdown_cell, head), ["---"] * len(head), *(map(markdown_cell, r) for r in rows))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def markdown_row(task: Task, results: Mapping[str, Any]) -> str:
    """`paper_row` in Markdown."""
    return _markdown(paper_row(task, results))


def peer_table(task: str) -> str:
    """`peer_rows` in Markdown, marked as published; empty where there are none."""
    cells = peer_rows(task)
    return f"Peers ({MARK}):\n\n{_markdown(cells)}" if cells[1] else ""


def write_results(
    output: Path, task: Task, gathered: Gathered, results: Mapping[str, Any]
) -> list[Path]:
    """Write results.json, row.md with the task's tables, report.html, and the chart if it has one.

    Returns:
        The files.
    """
    tables = task.tables(results["metrics"])
    texts = [f"{name}:\n\n{markdown_table(rows)}" for name, rows in tables.items() if rows]
    texts = [markdown_row(task, results), *texts, peer_table(task.name)]
    written = [output / name for name in ("results.json", "row.md", "report.html")]
    write_json(written[0], results)
    write_text(written[1], "\n".join(texts))
    pictures = _pictures(output, task, gathered)
    write_text(written[2], report_page(task, results, pictures, output))
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
        print(f"no pictures: {error}")
        return []


def report_page(
    task: Task, results: Mapping[str, Any], pictures: Sequence[Picture], folder: Path
) -> str:
    """The page: the row, tables, chart, all metrics, pictures, broken items, protocol, peers.

    Args:
        task: what was run.
        results: as `summarise` makes them.
        pictures: files below `folder`; they become part of the page.
        folder: the run's output.
    """
    broken = results["broken"]
    tables, series = task.tables(results["metrics"]), task.rate_distortion(results["metrics"])
    head, rows = peer_rows(task.name)
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
    note = html.paragraph(f"Peers ({MARK}):", faint=True)
    return [note, html.table(rows, head)] if rows else []


def _folded(summary: str, values: Metrics) -> Markup:
    shortened = {key: _short(value) for key, value in values.items()}
    return html.folded(summary, html.pairs(shortened))


def _short(value: Any) -> Any:
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
