"""A page of generated clips, which needs no other file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from pyratok_jax.io import html
from pyratok_jax.io.atomic import write_text
from pyratok_jax.reports import player

_STYLE = (
    player.STYLE
    + """
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 18px; }
.samples .card { margin: 0; }
.samples .card p { overflow-wrap: anywhere; }
"""
)
MOST = 64


class Sample(NamedTuple):
    """What the page shows of one clip.

    Attributes:
        prompt: it was drawn for.
        name: of its file.
        fps: frames per second.
        video: uint8 (t, h, w, 3).
    """

    prompt: str
    name: str
    fps: float
    video: np.ndarray


def write_samples_page(
    path: Path, title: str, samples: Sequence[Sample], settings: Mapping[str, Any]
) -> Path:
    """Write the page atomically; of more than `MOST` clips the first are shown."""
    shown = samples[:MOST]
    cards = html.join(_card(sample) for sample in shown)
    body = [
        html.paragraph(
            f"The first {len(shown)} clips; samples.jsonl has what reproduces each.", faint=True
        ),
        Markup("<div class='samples'>{}</div>").format(cards),
        html.section("Settings", html.pairs(settings)),
    ]
    write_text(path, html.document(title, body, style=_STYLE, script=player.SCRIPT))
    return path


def _card(sample: Sample) -> Markup:
    tiled = player.tile_videos({sample.name: sample.video}, sample.fps)
    shown = player.player(tiled, frozenset([sample.name]), {})
    caption = html.paragraph(sample.prompt or "no prompt")
    return Markup("<div class='card'>{}{}</div>").format(caption, shown)
