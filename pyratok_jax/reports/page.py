"""The report as one HTML page that needs no other file: films, tables, curves, settings."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyratok_jax import __version__
from pyratok_jax.metrics.image import PROTOCOL, frame_errors, psnr_of
from pyratok_jax.reports.clips import ReportClip
from pyratok_jax.reports.curves import Points, curve_svg, rate_distortion_svg
from pyratok_jax.reports.films import Film, Panel, make_film
from pyratok_jax.reports.pictures import ERROR_FULL_SCALE, error_colours
from pyratok_jax.reports.style import SCRIPT, STYLE
from pyratok_jax.reports.tables import headline, html_table

_MAIN = ("input", "reconstruction", "error")
_TITLES = {"step 0": "at step 0"}


def render_page(
    title: str,
    clips: Sequence[ReportClip],
    curves: Mapping[str, Points],
    table: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    rate_distortion: Mapping[str, Points] | None = None,
) -> str:
    """The whole page; sections without content are left out."""
    sections = [
        _summary(table),
        section("Clips", _reading() + "".join(_clip(clip) for clip in clips), clips),
        section("Rate and distortion", rate_chart(rate_distortion or {}), rate_distortion),
        section("Curves", _curves(curves), curves),
        section("Settings and protocol", _settings(settings), True),
    ]
    return document(title, sections)


def document(title: str, sections: Sequence[str]) -> str:
    """A whole page of sections, with the stylesheet and the script."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<link rel='icon' href='data:,'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{html.escape(title)}</h1>{''.join(sections)}"
        f"<footer>Written by PyraTok-JAX {__version__}.</footer>"
        f"</main><script>{SCRIPT}</script></body></html>\n"
    )


def section(heading: str, content: str, shown: Any) -> str:
    """A section under a heading; nothing where `shown` is empty."""
    return f"<section><h2>{heading}</h2>{content}</section>" if shown else ""


def _summary(table: Sequence[Mapping[str, Any]]) -> str:
    tiles = "".join(
        f"<div class='tile'><b>{figure}</b><span>{unit}</span><div>{html.escape(text)}</div></div>"
        for figure, unit, text in headline(table)
    )
    return (f"<div class='tiles'>{tiles}</div>" if tiles else "") + html_table(table)


def _reading() -> str:
    colours = error_colours()[np.linspace(0, ERROR_FULL_SCALE, 9).astype(int)]
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in colours.tolist())
    return (
        "<p class='faint small'>All panels of a clip play in step. The ceiling is the frozen VAE "
        "without quantisation, step 0 the same model before training. In the maps of the levels "
        "each token is a rectangle, coloured by the first three principal components of its "
        "code's embedding; equal colours mean similar codes, in all levels of a clip.</p>"
        "<p class='legend'>error 0 <i style='background: linear-gradient(to right, "
        f"{stops})'></i> {ERROR_FULL_SCALE} and more of 255</p>"
    )


def _clip(clip: ReportClip) -> str:
    film = make_film(clip.videos(), clip.fps)
    t, h, w = clip.original.shape[:3]
    caption = f"“{html.escape(clip.caption)}”" if clip.caption else "no caption"
    return (
        f"<article class='clip'><header><h3>{html.escape(clip.name)}</h3><p>{caption}</p>"
        f"<p class='faint small'>{t} frames, {w} × {h}, {clip.fps:.4g} frames per second</p>"
        f"</header>{_film(film, _psnr_notes(clip), frozenset(clip.level_videos()))}</article>"
    )


def _psnr_notes(clip: ReportClip) -> dict[str, str]:
    notes = {}
    for name, video in clip.decoded().items():
        notes[name] = f"{np.mean(psnr_of(frame_errors(clip.original, video))):.2f} dB"
    return notes


def _film(film: Film, notes: Mapping[str, str], sharp: frozenset[str]) -> str:
    if film.mime != "video/mp4":
        names = html.escape(", ".join(panel.name for panel in film.panels), quote=True)
        picture = f"<img class='source' alt='{names}' src='{film.url}'>"
        return f"<p class='small faint'>row by row: {names}</p>{picture}"
    main = [panel for panel in film.panels if panel.name in _MAIN]
    more = [panel for panel in film.panels if panel.name not in _MAIN]
    groups = f"<div class='panels main'>{''.join(_panel(p, notes, sharp) for p in main)}</div>"
    if more:
        inner = "".join(_panel(p, notes, sharp) for p in more)
        groups += f"<div class='panels more' style='--count: {len(more)}'>{inner}</div>"
    # A very short film is easier to see slowed down.
    slow = film.frames < 2 * film.fps
    speeds = "".join(
        f"<option value='{rate}'{' selected' if chosen else ''}>{label}</option>"
        for rate, label, chosen in (
            (0.25, "¼ speed", False),
            (0.5, "½ speed", slow),
            (1, "full speed", not slow),
        )
    )
    return (
        f"<div class='film' data-frames='{film.frames}' data-fps='{film.fps:.6g}'>"
        f"<video class='source' src='{film.url}' muted loop playsinline controls preload='auto'>"
        f"</video><div class='groups'>{groups}</div>"
        "<div class='controls'><button type='button'>Play</button>"
        f"<input type='range' min='0' max='{film.frames - 1}' value='0' aria-label='frame'>"
        f"<output></output><select aria-label='speed'>{speeds}</select></div></div>"
    )


def _panel(panel: Panel, notes: Mapping[str, str], sharp: frozenset[str]) -> str:
    note = f"<span>{notes[panel.name]}</span>" if panel.name in notes else ""
    title = html.escape(_TITLES.get(panel.name, panel.name))
    kind = " class='sharp'" if panel.name in sharp else ""
    at = f"{panel.left} {panel.top} {panel.width} {panel.height}"
    return (
        f"<figure><figcaption><span>{title}</span>{note}</figcaption>"
        f"<canvas{kind} width='{panel.width}' height='{panel.height}' data-at='{at}' "
        f"role='img' aria-label='{title}'></canvas></figure>"
    )


def _curves(curves: Mapping[str, Points]) -> str:
    figures = []
    for name, points in curves.items():
        finite = [value for _, value in points if np.isfinite(value)]
        last = f"<span>{finite[-1]:.4g}</span>" if finite else "<span>no value</span>"
        caption = f"<figcaption><span>{html.escape(name)}</span>{last}</figcaption>"
        figures.append(f"<figure class='curve'>{caption}{curve_svg(points)}</figure>")
    return (
        "<p class='faint small'>Over training steps; at the right the last value. The bold line is "
        f"a running mean.</p><div class='curves'>{''.join(figures)}</div>"
    )


def rate_chart(series: Mapping[str, Points]) -> str:
    """PSNR over bits per pixel, one line per name."""
    return f"<figure class='chart'>{rate_distortion_svg(series)}</figure>" if series else ""


def _settings(settings: Mapping[str, Any]) -> str:
    protocol = "".join(_entry(key, text) for key, text in PROTOCOL.items())
    given = f"<details><summary>Settings</summary>{pairs(settings)}</details>" if settings else ""
    note = (
        "<p class='faint small'>All numbers come from the decoded pixels; only what is shown here "
        "went through a video codec.</p>"
    )
    return f"{note}{given}<details><summary>Protocol</summary><dl>{protocol}</dl></details>"


def pairs(values: Mapping[str, Any]) -> str:
    """Nested values as a list of (dotted key, value)."""
    return f"<dl>{''.join(_entry(key, value) for key, value in flatten(values))}</dl>"


def _entry(key: str, value: Any) -> str:
    return f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as (dotted key, value)."""
    entries: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and value
        entries += flatten(value, f"{name}.") if nested else [(name, value)]
    return entries
