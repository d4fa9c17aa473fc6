"""Pictures of results: timelines, masks and heat maps over frames, clouds of points."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from pyratok_jax.evaluation.data.localization import Annotations
from pyratok_jax.evaluation.task import Partial, Picture
from pyratok_jax.evaluation.vision.temporal_detection import Detection, window_means
from pyratok_jax.reports.curves import plain_label

# Colours that differ in lightness too.
PALETTE = ((230, 75, 53), (77, 187, 213), (0, 160, 135), (243, 155, 127), (60, 84, 136))


def draw_timeline(
    path: Path,
    video: str,
    partial: Partial,
    annotations: Annotations,
    detections: Sequence[Detection],
    window: int,
) -> Picture:
    """Window scores of the classes that a video shows, its ground truth and its proposals."""
    truth = annotations.videos[video]
    labels = sorted({x.label for x in truth}) or list(annotations.labels[:1])
    figure = Figure(figsize=(9, 1.9 * len(labels)), layout="constrained")
    axes = figure.subplots(len(labels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, label in zip(axes, labels, strict=True):
        scores = partial["scores"][:, annotations.labels.index(label)]
        times = (np.arange(len(scores)) + 0.5) / partial["fps"]
        axis.plot(times, window_means(scores, window), color="black", linewidth=1)
        for x in truth:
            if x.label == label:
                axis.axvspan(x.start, x.end, color="tab:green", alpha=0.25, linewidth=0)
        low = axis.get_ylim()[0]
        for d in [d for d in detections if d.label == label][:10]:
            axis.plot([d.start, d.end], [low, low], color="tab:red", linewidth=5)
        axis.set_ylabel(plain_label(label), fontsize=8)
    axes[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=90)
    caption = f"{video}: mean similarity per window; green: ground truth; red: proposals"
    return Picture(f"pictures/{path.name}", caption)


def draw_masks(path: Path, frames: np.ndarray, masks: np.ndarray, caption: str) -> Picture:
    """Frames (t, h, w, 3) in a row, masks (n, t, h, w) of n things laid over them."""
    row = np.concatenate(list(overlay_masks(frames, masks)), axis=1)
    Image.fromarray(row).save(path)
    return Picture(f"pictures/{path.name}", caption)


def overlay_masks(frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames uint8 (t, h, w, 3) with masks (n, t, h, w) over them, a colour for each."""
    shown = frames.astype(np.float32)
    for number, mask in enumerate(masks):
        colour = np.array(PALETTE[number % len(PALETTE)], np.float32)
        shown[mask] = 0.45 * shown[mask] + 0.55 * colour
    return np.clip(shown, 0, 255).astype(np.uint8)


def heat_maps(frames: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Grey frames uint8 (t, h, w, 3) coloured by values (t, h, w), from their least to greatest."""
    low, high = float(values.min()), float(values.max())
    share = (values - low) / max(high - low, 1e-12)
    colours = colormaps["inferno"](share)[..., :3] * 255
    grey = frames.mean(axis=-1, keepdims=True)
    return np.clip(0.4 * grey + 0.6 * colours, 0, 255).astype(np.uint8)


def titled(frames: np.ndarray, lines: Mapping[str, tuple[int, int, int]]) -> np.ndarray:
    """Frames (t, h, w, 3) with lines of text in their colours above them."""
    strip = Image.new("RGB", (frames.shape[2], 14 * len(lines)))
    pen = ImageDraw.Draw(strip)
    for number, (line, colour) in enumerate(lines.items()):
        pen.text((2, 14 * number + 1), line, fill=colour)
    above = np.broadcast_to(np.asarray(strip), (len(frames), *np.asarray(strip).shape))
    return np.concatenate([above, frames], axis=1)


def tiled(panels: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Videos (t, h, w, 3) of one size side by side in rows; missing ones are black."""
    filled = [*panels, *[np.zeros_like(panels[0])] * (-len(panels) % columns)]
    rows = [np.concatenate(filled[i : i + columns], axis=2) for i in range(0, len(filled), columns)]
    return np.concatenate(rows, axis=1)


def draw_curve(
    path: Path, scores: np.ndarray, spans: Sequence[tuple[float, float]], fps: float, title: str
) -> None:
    """A score per frame over seconds, with the intervals found."""
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    axis = figure.subplots()
    axis.plot((np.arange(len(scores)) + 0.5) / fps, scores, color="black", linewidth=1)
    for start, end in spans:
        axis.axvspan(start, end, color="tab:red", alpha=0.25, linewidth=0)
    axis.set_title(plain_label(title), fontsize=9)
    axis.set_xlabel("seconds")
    axis.set_ylabel("similarity")
    figure.savefig(path, dpi=90)


def drawn_matrix(
    values: Float[np.ndarray, "r c"], rows: Sequence[str], columns: Sequence[str]
) -> Image.Image:
    """Values as colours, every row from its least to its greatest, with the names of both sides."""
    low, high = (f(values, axis=1, keepdims=True) for f in (np.min, np.max))
    shares = (values - low) / np.maximum(high - low, 1e-12)
    side = 1.6 + 0.28 * len(columns), 1.6 + 0.28 * len(rows)
    figure = Figure(figsize=side, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.imshow(shares, cmap="inferno")
    axis.set_xticks(range(len(columns)), map(plain_label, columns), rotation=90, fontsize=7)
    axis.set_yticks(range(len(rows)), map(plain_label, rows), fontsize=7)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return Image.open(file)


def draw_scatter(
    path: Path, panels: Mapping[str, Sequence[np.ndarray]], names: Sequence[str], about: str
) -> Picture:
    """Groups of points (n, 2), a panel per entry, a colour per name."""
    figure = Figure(figsize=(3.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, groups) in zip(axes, panels.items(), strict=True):
        for name, points in zip(names, groups, strict=True):
            short = name if len(name) <= 40 else name[:39] + "…"
            axis.scatter(points[:, 0], points[:, 1], s=6, alpha=0.6, label=plain_label(short))
        axis.set_title(plain_label(title), fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=7, ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
    return Picture(f"pictures/{path.name}", about)
