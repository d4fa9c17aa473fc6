"""The real clips of a generation protocol, and the protocols by name.

A protocol says how many samples of which size are compared with which clips. No publication fixes
everything: results are comparable only as far as the whole protocol in results.json is equal.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.files import BrokenVideoError, is_image, probe, read_clip, read_image
from pyratok_jax.data.world.films import WorldRecords, parse_world
from pyratok_jax.data.world.prompts import WorldPrompt, heldout_prompts
from pyratok_jax.data.world.scenes import KINDS
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import covering_size, prepared, square

_UCF: dict[str, Any] = {"frames": 16, "side": 128, "condition": "classes"}

_PROTOCOLS: dict[str, dict[str, Any]] = {
    # universome/stylegan-v, fvd2048_16f: short videos left out; UCF-101 train and test as --data.
    "styleganv": {
        "samples": 2048, "frames": 16, "side": 256, "covariance": "biased", "condition": "none",
    },
    # TATS: the training split as --data.
    "tats": {**_UCF, "samples": 2048},
    # LARP, NAR: training split; labels at the frequencies of that split.
    "larp": {**_UCF, "samples": 10_000, "covariance": "biased"},
    # MAGVIT: training split; four repeats; frames pass through 64x64 before the network's 224x224.
    "magvit": {**_UCF, "samples": 10_000, "through": 64, "repeats": 4},
    # Zero-shot text to video: one caption of each of the 2,990 test videos.
    "msrvtt": {"samples": 2990, "frames": 16, "side": 256, "condition": "captions"},
    "msrvtt-2048": {"samples": 2048, "frames": 16, "side": 256, "condition": "captions"},
    # No publication states the number; 2,048 is what most codes default to.
    "webvid": {"samples": 2048, "frames": 16, "side": 256, "condition": "captions"},
}  # fmt: skip
# A run of one of them claims its name, which is refused where a check of it does not hold.
GENERATION_PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    name: {**settings, "claims": name} for name, settings in _PROTOCOLS.items()
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """One real clip, and the prompt of the sample that is compared with it.

    Attributes:
        record: where it is.
        prompt: caption, name of a class, or nothing.
        world: of a film of the world, what the prompt says.
    """

    record: ClipRecord
    prompt: str
    world: WorldPrompt | None = None


def references(
    data: str,
    *,
    samples: int,
    frames: int,
    interval: int,
    side: int,
    seed: int,
    condition: str,
    things: int = 0,
) -> list[Reference]:
    """As many real clips as samples, in a random order that the seed fixes.

    Clips come again, with other windows, where there are fewer than samples. Clips that are known
    to be too short are left out; those that cannot be read stay, and break the samples that are
    compared with them.

    Args:
        data: a source; "builtin:world-heldout" gives its readable prompts in their order.
        samples: how many.
        frames, interval: of a window.
        side: of the clips.
        seed: of the order.
        condition: what `Reference.prompt` is: "captions", "classes" or "none".
        things: of world prompts, how many things they name; 0: any number.

    Raises:
        UserError: no clip is long enough, or has no caption where one is needed.
    """
    world = parse_world(data)
    if world is not None and world.split == "world-heldout" and condition == "captions":
        return _world(world, samples, frames, side, things)
    records = load_source(data)
    order = np.random.default_rng(seed).permutation(len(records))
    # Of very many clips only as many are looked at as are needed.
    found: list[Reference] = []
    for number in order:
        record = records[int(number)]
        if len(found) == samples:
            break
        if _too_short(record, 1 + (frames - 1) * interval):
            continue
        prompt = "" if condition == "none" else record.caption
        if prompt is None:
            raise UserError(
                f"{data}: the clip {record.id} has no caption; give --set condition=none, or data "
                "with captions (of a class-conditional prior the names of classes)"
            )
        found.append(Reference(record, prompt))
    if not found:
        raise UserError(f"{data} holds no clip of {1 + (frames - 1) * interval} frames")
    return [found[number % len(found)] for number in range(samples)]


def _world(
    records: WorldRecords, samples: int, frames: int, side: int, things: int
) -> list[Reference]:
    prompts = heldout_prompts(samples, frames, side, seed=records.seed, kinds=KINDS, things=things)
    if prompts[-1].number >= len(records):
        most = sum(prompt.number < len(records) for prompt in prompts)
        raise UserError(
            f"builtin:world-heldout has {most} films that can be read off at {frames} frames of "
            f"{side} pixels, not {samples}; give --set samples={most}"
        )
    return [Reference(records[p.number], p.text, p) for p in prompts]


def _too_short(record: ClipRecord, span: int) -> bool:
    if record.drawing is not None:
        return False
    if record.stored is not None:
        return len(record.stored) < span
    if is_image(record.media):
        return span > 1
    seconds, fps = record.span, record.fps
    if seconds is None or fps is None:
        try:
            info = probe(record.media)
        except BrokenVideoError:
            return False
        fps = info.fps
        end = record.end if record.end is not None else info.seconds
        seconds = end - (record.start or 0.0)
    return round(seconds * fps) < span


def real_rate(record: ClipRecord) -> float | None:
    """Frames per second of a clip's file; None where it has no time (drawings, images)."""
    if record.drawing is not None or record.stored is not None or is_image(record.media):
        return None
    return float(record.fps or probe(record.media).fps)


def reference_clip(
    record: ClipRecord, number: int, *, frames: int, interval: int, side: int, seed: int
) -> UInt8[np.ndarray, "t h w 3"]:
    """A random window of a clip: every `interval`-th frame, short side resized, square crop.

    Args:
        record: of the clip.
        number: of the sample, which decides where the window is.
        frames, interval: of the window.
        side: of the square.
        seed: of all windows.

    Raises:
        BrokenVideoError: it cannot be read.
    """
    if record.drawing is not None:
        return record.drawing.draw(frames, side, side)
    span = 1 + (frames - 1) * interval
    if record.stored is not None:
        spare = max(len(record.stored) - span, 0)
        begin = int(np.random.default_rng((seed, number)).integers(spare + 1))
        images = record.stored[begin : begin + span : interval]
        return np.stack([prepared(read_image(image), side) for image in images])
    info = probe(record.media)
    start = record.start or 0.0
    end = record.end if record.end is not None else info.seconds
    room = max((end - start) - span / info.fps, 0.0)
    first = start + np.random.default_rng((seed, number)).uniform(0, room) if room else start
    size = covering_size((info.height, info.width), side)
    clip = read_clip(record.media, start=first, frames=span, size=size)
    return np.ascontiguousarray(square(clip, side)[::interval])
