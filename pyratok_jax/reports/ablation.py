"""Tables and chart of ablations: mean and spread over seeds, rate beside every quality."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyratok_jax.io.atomic import write_bytes
from pyratok_jax.reports.curves import plain_label

# Key of a result -> heading and digits; from the names on, of the world without captions.
COLUMNS = {
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "lpips": ("LPIPS (VGG)", 4),
    "names": ("named rightly, % of 12 classes (chance 8.3)", 1),
    "segmentation_j": ("segmentation, J", 1),
    "localization_map": ("localisation of motions, average mAP", 1),
    "questions": ("questions, % (chance 25)", 1),
    "nats/gain/level_1": ("level 1, nats: another caption less own", 3),
}
_ALWAYS = ("psnr", "ssim", "lpips")
START = "psnr_before_step_1"


def summarise(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row per ablation: its label, bpp, and mean and standard deviation of each figure.

    The spread is the sample's (n - 1); with one seed there is none. `versus_full` is the mean
    difference in PSNR to the runs of `full` with the same seeds, `start` the mean PSNR of the
    fitted levels before the first step.
    """
    full = {run["seed"]: run["psnr"] for run in results.get("full", ())}
    rows = []
    for name, runs in results.items():
        if not runs:
            continue
        first = runs[0]
        row = {key: first.get(key) for key in ("group", "label", "bpp", "published")}
        row |= {"name": name, "seeds": len(runs)}
        for column in COLUMNS:
            values = [run[column] for run in runs if run.get(column) is not None]
            row[column] = float(np.mean(values)) if values else None
            row[f"{column}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        starts = [run[START] for run in runs if run.get(START) is not None]
        row["start"] = float(np.mean(starts)) if starts else None
        paired = [run["psnr"] - full[run["seed"]] for run in runs if run["seed"] in full]
        row["versus_full"] = float(np.mean(paired)) if paired else None
        rows.append(row)
    return rows


def write_tables(rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Path]:
    """Write `ablations.md`, `ablations.csv` and `ablations.png`, each atomically."""
    contents = {"md": markdown(rows).encode(), "csv": _csv(rows).encode(), "png": _chart(rows)}
    for suffix, content in contents.items():
        write_bytes(folder / f"ablations.{suffix}", content)
    names = {"table": "md", "csv": "csv", "chart": "png"}
    return {name: folder / f"ablations.{suffix}" for name, suffix in names.items()}


def _figure(row: Mapping[str, Any], column: str, digits: int) -> str:
    if row[column] is None:
        return "-"
    spread = row[f"{column}_std"]
    text = f"{row[column]:.{digits}f}"
    return text if spread is None else f"{text} ± {spread:.{digits}f}"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as markdown; what was measured of no row is left out."""
    shown = [
        name for name in COLUMNS if name in _ALWAYS or any(row[name] is not None for row in rows)
    ]
    headings = [COLUMNS[name][0] for name in shown]
    heads = ["group", "what", "bpp", "PSNR before step 1", headings[0], "to full", *headings[1:],
             "seeds", "published PSNR, COCO / WebVid (full scale)"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        bpp = "-" if row["bpp"] is None else f"{row['bpp']:.3f}"
        start = "-" if row["start"] is None else f"{row['start']:.2f}"
        versus = "-" if row["versus_full"] is None else f"{row['versus_full']:+.2f}"
        published = " / ".join("-" if x is None else f"{x:.2f}" for x in row["published"])
        figures = [_figure(row, name, COLUMNS[name][1]) for name in shown]
        cells = [row["group"], row["label"], bpp, start, figures[0], versus, *figures[1:],
                 str(row["seeds"]), published]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = ["group", "name", "label", "bpp", "seeds", "start", "versus_full"]
    names += [key for column in COLUMNS for key in (column, f"{column}_std")]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _chart(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Bars of PSNR with the seeds' spread, labelled with the rate; PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row["psnr"] is not None]
    figure, axis = pyplot.subplots(figsize=(9, 0.32 * len(shown) + 1.2), layout="constrained")
    places = np.arange(len(shown))[::-1]
    groups = list(dict.fromkeys(row["group"] for row in shown))
    colours = [f"C{groups.index(row['group']) % 10}" for row in shown]
    axis.barh(
        places,
        [row["psnr"] for row in shown],
        xerr=[row["psnr_std"] or 0.0 for row in shown],
        color=colours,
        height=0.7,
    )
    labels = []
    for row in shown:
        rate = "" if row["bpp"] is None else f", {row['bpp']:.3f} bpp"
        labels.append(plain_label(f"{row['label']}{rate}"))
    axis.set_yticks(places, labels, fontsize=8)
    lowest = min((row["psnr"] for row in shown), default=0.0)
    axis.set_xlim(left=max(lowest - 1.5, 0.0))
    axis.set_xlabel("PSNR, dB")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    return buffer.getvalue()
