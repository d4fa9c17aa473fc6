"""The held-out clips of a data config: one centred clip of each record, always the same."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pyratok_jax.data.pipeline import make_loader
from pyratok_jax.data.sources.records import DEFAULT_FPS, ClipRecord
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.files import BrokenVideoError, probe


class HeldoutClip(NamedTuple):
    """One clip that is never trained on; video is uint8 (t, h, w, 3)."""

    name: str
    caption: str | None
    fps: float
    video: np.ndarray


def heldout_clips(
    config: Mapping[str, Any], buckets: tuple[str, ...], limit: int
) -> list[HeldoutClip]:
    """At most `limit` clips of the sources in `config.heldout`, in the order of their names.

    Args:
        config: the data part of a training config.
        buckets: the shapes to cut clips to, see `data.buckets`.
        limit: how many clips.

    Raises:
        UserError: no held-out source, or nothing readable in it.
    """
    settings = dict(config) | {
        "buckets": buckets, "crop": "center", "zoom": 1.0, "mirror": False, "workers": 0,
        "threads": 1, "prefetch": 1,
    }  # fmt: skip
    records = {r.id: r for spec in config["heldout"] for r in load_source(spec)}
    loader = make_loader(settings, seed=0, batch_size=1, split="heldout")
    found: dict[str, HeldoutClip] = {}
    # An epoch shows every clip once; broken ones are replaced, so that some may come twice.
    for _ in range(2 * len(records)):
        batch = next(loader)
        name = batch["ids"][0]
        if name not in found:
            record = records[name]
            fps = settings["fps"] or record.fps or _fps(record)
            found[name] = HeldoutClip(name, record.caption, fps, batch["video"][0])
        if len(found) >= min(limit, len(records)):
            break
    loader.close()
    return [found[name] for name in sorted(found)]


def _fps(record: ClipRecord) -> float:
    if record.stored is not None:
        return record.stored_fps
    try:
        return probe(record.media).fps
    except BrokenVideoError:
        return DEFAULT_FPS


def other_caption(clips: Sequence[HeldoutClip], clip: HeldoutClip) -> str | None:
    """The next caption, around the end, that differs from a clip's own; None: there is none."""
    start = [other.name for other in clips].index(clip.name)
    captions = [other.caption for other in (*clips[start:], *clips[:start])]
    return next((c for c in captions if c and c != clip.caption), None)
