"""Charts: curves as inline SVG that follows the colours of the page, and as PNG files.

Drawn with matplotlib's figures directly: no window system, no global state.
"""

import io
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from pyratok_jax.errors import printable
from pyratok_jax.io.atomic import atomic_path

Points = Sequence[tuple[float, float]]

# Placeholders that the page's colours replace; every other colour reads on light and dark.
_INK, _ACCENT = "#010203", "#010204"
_SERIES = ("#2f7ed8", "#d9822b", "#2fa36b", "#b04fc4", "#c8463f", "#7a8491")
_LOG_SPAN = 30.0
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pyratok",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.color": _INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.6,
}


def plain_label(text: str) -> str:
    """A text as a label that shows it as it is: matplotlib reads formulas between dollar signs.

    Control characters, which its fonts and SVG do not have, become escapes; a leading underscore,
    which hides a name from legends, follows a hair space.
    """
    plain = printable(text).replace("\n", " ").replace("$", r"\$")
    return f"\u200a{plain}" if plain.startswith("_") else plain


def curve_svg(
    points: Points, *, size: tuple[float, float] = (3.3, 1.75), chance: float | None = None
) -> Markup:
    """One value over the steps as an SVG element; long noisy curves get a smoothed line.

    Points that are not finite are left out; a positive curve over more than a factor of 30 has a
    logarithmic axis. `chance`, what guessing gives, is a dashed line.
    """
    return _over_steps([("", points, _ACCENT)], size, chance)


def curves_svg(
    series: Mapping[str, Points],
    *,
    size: tuple[float, float] = (3.3, 1.75),
    chance: float | None = None,
) -> Markup:
    """Several values over the steps in one chart with a legend; otherwise as `curve_svg`."""
    coloured = zip(series.items(), itertools.cycle(_SERIES), strict=False)
    return _over_steps([(name, points, c) for (name, points), c in coloured], size, chance)


def _over_steps(
    lines: Sequence[tuple[str, Points, str]], size: tuple[float, float], chance: float | None
) -> Markup:
    """A chart of lines, each with its name in the legend ("": in none), points and colour."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axis = figure.subplots()
        for name, points, colour in lines:
            _draw_curve(axis, points, colour)
            if name:
                axis.lines[-1].set_label(plain_label(name))
        if chance is not None:
            axis.axhline(chance, color=_INK, linewidth=1.0, linestyle="--", alpha=0.6)
        if any(name for name, _, _ in lines):
            axis.legend(frameon=False, fontsize=7)
        return _svg(figure)


def rate_chart(series: Mapping[str, Points], quality: str = "PSNR (dB)") -> Markup:
    """Quality over rate, one line of (bpp, quality) points per name; nothing without a line."""
    if not series:
        return Markup("")
    with matplotlib.rc_context(_STYLE):
        drawing = _svg(_rate_distortion(series, quality))
    return Markup("<figure class='card chart'>{}</figure>").format(drawing)


def rate_distortion_png(
    series: Mapping[str, Points], path: str | os.PathLike, quality: str = "PSNR (dB)"
) -> Path:
    """Quality over rate as a picture in a file, written atomically."""
    with matplotlib.rc_context(_STYLE):
        figure = _rate_distortion(series, quality)
        figure.set_facecolor("w")
        return _png(figure, path)


def _rate_distortion(series: Mapping[str, Points], quality: str) -> Figure:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    for number, (name, points) in enumerate(series.items()):
        rates, values = np.array(sorted(points), float).reshape(-1, 2).T
        colour = _SERIES[number % len(_SERIES)]
        axis.plot(
            rates, values, "o-", color=colour, label=plain_label(name), markersize=4, linewidth=1.4
        )
    every = [rate for points in series.values() for rate, _ in points]
    if every and min(every) > 0 and max(every) > 4 * min(every):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("bits per pixel")
    axis.set_ylabel(quality)
    axis.grid(True, which="both")
    if series:
        axis.legend(frameon=False)
    return figure


def _draw_curve(axis: Axes, points: Points, colour: str) -> None:
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    keep = np.isfinite(values)
    steps, values = steps[keep], values[keep]
    window = len(values) // 20
    if window > 2:
        axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
        axis.plot(steps, _smoothed(values, window), color=colour, linewidth=1.6)
    else:
        few = len(values) < 12
        axis.plot(steps, values, color=colour, linewidth=1.6, marker="o" if few else "", ms=3)
    if len(values) and values.min() > 0 and values.max() > _LOG_SPAN * values.min():
        axis.set_yscale("log")
    else:
        axis.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 4))
        axis.locator_params(axis="y", nbins=4)
    axis.locator_params(axis="x", nbins=4)
    axis.grid(True)


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last `window` values, fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (sums[end] - sums[start]) / (end - start)


def _svg(figure: Figure) -> Markup:
    file = io.StringIO()
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    for axis in figure.axes:
        axis.patch.set_alpha(0)
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    return Markup(text.replace(_INK, "currentColor").replace(_ACCENT, "var(--accent)"))


def _png(figure: Figure, path: str | os.PathLike) -> Path:
    FigureCanvasAgg(figure)
    with atomic_path(path) as scratch:
        figure.savefig(scratch, format="png", dpi=130)
    return Path(path)
