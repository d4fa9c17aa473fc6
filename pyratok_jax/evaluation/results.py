"""Files that a finished run leaves: results.json, row.md and report.html."""

import importlib.metadata
import json
import math
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import pyratok_jax
from pyratok_jax.evaluation.framework import Partial, Picture, Task
from pyratok_jax.evaluation.partials import write_atomic
from pyratok_jax.evaluation.peers import PEERS, peer_table
from pyratok_jax.evaluation.runner import Gathered

_PACKAGES = ("jax", "flax", "numpy", "scipy", "av", "trackeval", "pycocotools", "dm-pix")


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


def markdown_row(task: Task, results: Mapping[str, Any]) -> str:
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
    head = ["method", *titles, "bpp", "size", "frames", "videos"]
    body = [
        f"PyraTok-JAX {results['checkpoint']['hash'][:12]}".strip(),
        *cells,
        _number(results["bpp"], 4),
        size,
        span,
        f"{items['evaluated']} of {items['total']}",
    ]
    rows = (head, ["---"] * len(head), body)
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "-"


def write_results(output: Path, task: Task, gathered: Gathered, results: Mapping[str, Any]) -> None:
    """Write results.json, row.md with the task's tables, and report.html with its pictures."""
    from pyratok_jax.evaluation.page import report_page
    from pyratok_jax.reports.curves import rate_distortion_png
    from pyratok_jax.reports.tables import markdown_table

    row = markdown_row(task, results)
    tables = task.tables(results["metrics"])
    texts = [row, *(f"{name}:\n\n{markdown_table(rows)}" for name, rows in tables.items() if rows)]
    write_atomic(output / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    pictures = _pictures(output, task, gathered)
    series = task.rate_distortion(results["metrics"])
    if series:
        rate_distortion_png(series, output / "rate_distortion.png")
    write_atomic(output / "row.md", "\n".join([*texts, peer_table(task.name)]).encode())
    page = report_page(task, results, row, pictures, output)
    write_atomic(output / "report.html", page.encode())


def _pictures(output: Path, task: Task, gathered: Gathered) -> list[Picture]:
    """The task's pictures; what goes wrong here is said and costs no numbers."""
    folder = output / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return task.pictures(gathered.partials, folder) if gathered.partials else []
    except Exception as error:
        print(f"no pictures: {error}")
        return []
