"""The page of a training that is running: progress, rates, curves, pictures of held-out clips."""

import datetime
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image

from pyratok_jax.io import html
from pyratok_jax.io.atomic import write_text
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.reports.curves import Points
from pyratok_jax.reports.report import CURVE_STYLE, chance_of, curve_figures, named_curves

MOST = 12  # Curves of a section: what is drawn often must be drawn fast.
_STYLE = (
    CURVE_STYLE
    + """
progress { width: 100%; height: 14px; accent-color: var(--accent); }
.pictures {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px;
}
.pictures img { width: 100%; image-rendering: pixelated; }
"""
)
# What is said of the rates, with its unit.
_RATES = {
    "seconds_per_step": ("{:.4g} s", "a step"),
    "clips_per_second": ("{:.4g}", "clips per second"),
    "megapixels_per_second": ("{:.4g}", "megapixels per second"),
    "teraflops_per_second": ("{:.4g}", "model TFLOP/s a device"),
    "mfu": ("{:.1%}", "MFU"),
}


class LiveTraining(NamedTuple):
    """What the page shows.

    Attributes:
        step: done.
        steps: in all.
        curves: (step, value) points of the training by name.
        measured: the same of the evaluators; drawn first.
        timing: rates, see `training.loop.throughput`, and `seconds_left`.
        pictures: of the evaluators, by name.
        ended: no step follows in this run.
    """

    step: int
    steps: int
    curves: Mapping[str, Points]
    measured: Mapping[str, Points]
    timing: Mapping[str, float]
    pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]
    ended: bool = False


def write_live_page(path: AnyPath, training: LiveTraining, refresh: int = 30) -> None:
    """Write the page atomically; a browser loads it again after `refresh` seconds (0: never)."""
    step, steps = training.step, training.steps
    bar = Markup("<progress value='{}' max='{}'></progress>").format(step, steps)
    facts = [_progress(training)]
    facts += [
        f"{style.format(training.timing[name])} {text}"
        for name, (style, text) in _RATES.items()
        if name in training.timing
    ]
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    body = [
        bar,
        html.paragraph(" · ".join(facts)),
        html.paragraph(f"Written {now}.", faint=True),
        html.section("Held-out clips", _pictures(training.pictures)),
        html.section("Measured on held-out data", _curves(training.measured, training.curves)),
        html.section("Training", _curves(training.curves, training.curves)),
    ]
    title = "PyraTok training" if training.ended else f"PyraTok training, step {step}"
    write_text(path, html.document(title, body, style=_STYLE, refresh=refresh))


def _progress(training: LiveTraining) -> str:
    done = f"step {training.step} of {training.steps}"
    if training.ended:
        return done + (", complete" if training.step >= training.steps else ", stopped")
    left = training.timing.get("seconds_left")
    if left is None:
        return done
    return f"{done}, {datetime.timedelta(seconds=round(left))} left"


def _pictures(pictures: Mapping[str, np.ndarray]) -> Markup:
    figure = Markup("<figure class='card'><figcaption>{}</figcaption>{}</figure>")
    shown = [
        figure.format(name, html.picture(Image.fromarray(picture), name))
        for name, picture in pictures.items()
    ]
    return Markup("<div class='pictures'>{}</div>").format(html.join(shown)) if shown else Markup()


def _curves(curves: Mapping[str, Points], training: Mapping[str, Points]) -> Markup:
    """At most `MOST` curves; those that never change come last."""
    named = named_curves(curves)
    order = sorted(named, key=lambda name: len({value for _, value in named[name]}) < 2)[:MOST]
    chances = {name: chance_of(name.partition(" (")[0], training) for name in order}
    return curve_figures({name: named[name] for name in order}, chances)
