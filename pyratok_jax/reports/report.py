"""The report of a training: `report.html`, which needs no other file, and `contact_sheet.png`."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from pyratok_jax.io import html
from pyratok_jax.io.atomic import atomic_path, write_text
from pyratok_jax.io.remote import AnyPath, any_path
from pyratok_jax.metrics.image import PROTOCOL
from pyratok_jax.reports import player
from pyratok_jax.reports.clips import ReportClip, contact_sheet
from pyratok_jax.reports.curves import Points, curve_svg, curves_svg, rate_chart
from pyratok_jax.reports.pictures import ERROR_FULL_SCALE, error_colours, token_maps
from pyratok_jax.reports.tables import code_use_table, headline, html_table

__all__ = ["ReportClip", "token_maps", "write_report"]

CURVE_STYLE = """
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 14px; }
.curve { margin: 0; padding: 10px 12px; }
.curve figcaption {
  display: flex; justify-content: space-between; gap: 12px; font-size: 14px; margin-bottom: 4px;
  font-weight: 550; overflow-wrap: anywhere;
}
.curve figcaption span:last-child { font-weight: 400; color: var(--faint); }
"""
_MAIN = frozenset(("input", "reconstruction", "error"))
_STYLE = (
    player.STYLE
    + """
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px;
  margin: 26px 0 20px;
}
.tile { margin: 0; padding: 14px 16px; min-width: 0; }
.tile b { font-size: 28px; font-weight: 650; letter-spacing: -0.02em; }
.tile:first-child b { color: var(--accent); }
.tile span { color: var(--faint); margin-left: 5px; font-size: 14px; }
.tile div { color: var(--faint); font-size: 14px; line-height: 1.35; }
.card header { margin-bottom: 14px; }
.card header p { margin: 2px 0 0; }
.legend { display: flex; align-items: center; gap: 8px; font-size: 14px; color: var(--faint); }
.legend i { display: block; width: 160px; height: 10px; border-radius: 2px; }
@media (max-width: 760px) {
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile:first-child { grid-column: 1 / -1; }
  .tile b { font-size: 24px; }
  .card { padding: 12px; }
}
"""
    + CURVE_STYLE
)


def write_report(
    folder: str | os.PathLike,
    *,
    title: str,
    clips: Sequence[ReportClip],
    curves: Mapping[str, Points],
    table: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    rate_distortion: Mapping[str, Points] | None = None,
    language: Markup | None = None,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, AnyPath]:
    """Write both files atomically and say where they are.

    Args:
        folder: where to; made when it does not exist.
        title: heading of both.
        clips: what to show; none leaves out the videos and the contact sheet.
        curves: (step, value) points by name, in the order of the page.
        table: one row per compared model: `name`, and any of psnr, psnr_video, ssim,
            ssim_uniform, lpips, lpips_alex, bpp, utilisation (a number or a list per level),
            perplexity; other keys become columns too. `levels` (`CodeUsage.summary()`) go into
            a table of their own, in place of utilisation and perplexity. `role` "model",
            "ceiling", "step0" or "calibrated" puts a row into the headline.
        settings: what the run was made with, nested or flat.
        rate_distortion: (bpp, PSNR) points by name, for a chart; None leaves it out.
        language: what is said of the words in the tokens; None leaves it out.
        seconds: what each part of the run took; None leaves it out.

    Returns:
        Paths by "report" and, with clips, "contact_sheet".
    """
    folder = any_path(folder)
    shown = [_reading(), *(_clip(clip) for clip in clips)] if clips else []
    # Sections without content are left out.
    sections = [
        _tiles(table),
        html_table([_without_levels(row) for row in table]),
        html.section("Use of codes", _code_use(table)),
        html.section("Clips", *shown),
        html.section("Language", *filter(None, [language])),
        html.section("Rate and distortion", rate_chart(rate_distortion or {})),
        html.section("Curves", *([_curves(curves)] if curves else [])),
        html.section("Time", *_times(seconds or {})),
        html.section("Settings and protocol", *_settings(settings)),
    ]
    page = html.document(title, sections, style=_STYLE, script=player.SCRIPT)
    written: dict[str, AnyPath] = {"report": folder / "report.html"}
    write_text(written["report"], page)
    if clips:
        written["contact_sheet"] = folder / "contact_sheet.png"
        with atomic_path(written["contact_sheet"]) as scratch:
            contact_sheet(title, clips).save(scratch, "PNG")
    return written


def _times(seconds: Mapping[str, float]) -> list[Markup]:
    rows = [(name, f"{value:.0f} s") for name, value in seconds.items()]
    return [html.table(rows, ("", "took"))] if rows else []


def _without_levels(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row without the use of codes, which has a table of its own where it is known by level."""
    if not row.get("levels"):
        return row
    hidden = ("levels", "utilisation", "perplexity", "tokens")
    return {key: value for key, value in row.items() if key not in hidden}


def _code_use(table: Sequence[Mapping[str, Any]]) -> Markup:
    found = code_use_table(table)
    note = "Of the clips shown here; n tokens hold at most n different codes."
    return html.paragraph(note, faint=True) + found if found else found


def _tiles(table: Sequence[Mapping[str, Any]]) -> Markup:
    tile = Markup("<div class='card tile'><b>{}</b><span>{}</span><div>{}</div></div>")
    tiles = html.join(tile.format(*entry) for entry in headline(table))
    return Markup("<div class='tiles'>{}</div>").format(tiles) if tiles else tiles


def _reading() -> Markup:
    """How the panels are to be read."""
    colours = error_colours()[np.linspace(0, ERROR_FULL_SCALE, 9).astype(int)]
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in colours.tolist())
    text = html.paragraph(
        "All panels of a clip play in step. The ceiling is the frozen VAE without quantisation, "
        "step 0 the same model before training. In the maps of the levels each token is a "
        "rectangle, coloured by the first three principal components of its code's embedding; "
        "equal colours mean similar codes, in all levels of a clip.",
        faint=True,
    )
    return text + Markup(
        "<p class='legend'>error 0 <i style='background: linear-gradient(to right, {})'></i> "
        "{} and more of 255</p>"
    ).format(stops, ERROR_FULL_SCALE)


def _clip(clip: ReportClip) -> Markup:
    t, h, w = clip.original.shape[:3]
    notes = {name: f"{psnr:.2f} dB" for name, psnr in clip.psnr().items()}
    tiled = player.tile_videos(clip.videos(), clip.fps)
    facts = f"{t} frames, {w} × {h}, {clip.fps:.4g} frames per second"
    return Markup("<article class='card'><header><h3>{}</h3>{}{}</header>{}</article>").format(
        clip.name,
        html.paragraph(f"“{clip.caption}”" if clip.caption else "no caption"),
        html.paragraph(facts, faint=True),
        player.player(tiled, _MAIN, notes, sharp=frozenset(clip.level_videos())),
    )


# Shown first, in this order, with the names that they should have.
_FIRST = {"loss": "loss", "psnr": "psnr", "l1": "l1", "ssim": "1 - SSIM", "lpips": "lpips"}
_CHANCE = "autoregressive/chance"
_CAPTIONS = {"own": "own caption", "none": "no caption", "shuffled": "another's caption"}
_NATS = re.compile(r"(?P<prefix>.*?)nats/(?P<caption>own|none|shuffled)/level_(?P<level>\d+)")
_PRIMARY = 12  # Curves that are shown at once; the others are folded.


def chance_of(name: str, curves: Mapping[str, Points]) -> float | None:
    """What guessing gives, for the curves of predictions; None for all others."""
    if name == "autoregressive/bit_accuracy":
        return 0.5
    chance = curves.get(_CHANCE)
    nats = name == "autoregressive" or name.startswith("autoregressive/level_")
    if chance and (nats or "/nats/" in name and "/gain/" not in name):
        return chance[-1][1]
    return 0.0 if "/nats/gain/" in name else None


def named_curves(curves: Mapping[str, Points]) -> dict[str, Points]:
    """The curves in the order of the page, under names that say what they are.

    The loss term `ssim` is 1 - SSIM, unlike the SSIM of the tables; the autoregressive loss stands
    beside what a uniform guess costs; `total` is left out where it is the loss.
    """
    left = dict(curves)
    if left.get("total") == left.get("loss"):
        left.pop("total", None)
    named = {new: left.pop(old) for old, new in _FIRST.items() if old in left}
    chance = left.get(_CHANCE)
    for name, points in left.items():
        if name == "autoregressive" and chance:
            name = f"autoregressive (chance: {chance[-1][1]:.4g})"
        if name != _CHANCE:
            named[name] = points
    return named


def by_caption(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Nats of a level under several captions, which belong in one chart.

    Returns:
        the name of each chart, and in it the curve of each caption.
    """
    charts: dict[str, dict[str, str]] = {}
    for name in names:
        if (found := _NATS.fullmatch(name)) is not None:
            chart = f"{found['prefix']}nats per token of level {found['level']}"
            charts.setdefault(chart, {})[_CAPTIONS[found["caption"]]] = name
    return {chart: lines for chart, lines in charts.items() if len(lines) > 1}


def curve_figures(
    named: Mapping[str, Points], chances: Mapping[str, float | None] | None = None
) -> Markup:
    """A grid of charts, each with its name and its last value.

    Args:
        named: (step, value) points by what a chart is called.
        chances: a level that is drawn into a chart, by its name.
    """
    figure = Markup(
        "<figure class='card curve'><figcaption><span>{}</span><span>{}</span></figcaption>{}"
        "</figure>"
    )
    figures = []
    charts = by_caption(named)
    for chart, lines in charts.items():
        shown = {caption: named[name] for caption, name in lines.items()}
        last = ", ".join(_last(points) for points in shown.values())
        chance = (chances or {}).get(next(iter(lines.values())))
        figures.append(figure.format(chart, last, curves_svg(shown, chance=chance)))
    apart = {name for lines in charts.values() for name in lines.values()}
    for name, points in named.items():
        if name not in apart:
            drawn = curve_svg(points, chance=(chances or {}).get(name))
            figures.append(figure.format(name, _last(points), drawn))
    return (
        Markup("<div class='curves'>{}</div>").format(html.join(figures)) if figures else Markup()
    )


def _last(points: Points) -> str:
    finite = [value for _, value in points if np.isfinite(value)]
    return f"{finite[-1]:.4g}" if finite else "no value"


def _curves(curves: Mapping[str, Points]) -> Markup:
    """The first curves of `named_curves`; the others, and those that never change, are folded."""
    named = named_curves(curves)
    chances = {name: chance_of(name.partition(" (")[0], curves) for name in named}
    changing = [name for name, points in named.items() if len({value for _, value in points}) > 1]
    first = changing[:_PRIMARY] or list(named)[:_PRIMARY]
    about = (
        "Over training steps; at the right the last value. A bold line over a pale one is a "
        "running mean; a dashed one is what guessing gives."
    )
    rest = {name: points for name, points in named.items() if name not in first}
    more = curve_figures(rest, chances) if rest else ""
    return (
        html.paragraph(about, faint=True)
        + curve_figures({name: named[name] for name in first}, chances)
        + html.folded(f"{len(rest)} more curves", more)
    )


def _settings(settings: Mapping[str, Any]) -> list[Markup]:
    note = (
        "All numbers come from the decoded pixels; only what is shown here went through a video "
        "codec."
    )
    return [
        html.paragraph(note, faint=True),
        html.folded("Settings", html.pairs(settings)),
        html.folded("Protocol", html.pairs(PROTOCOL)),
    ]
