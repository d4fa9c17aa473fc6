"""What a video of the world shows, read off its pixels by rules: colour, shape, count and motion.

No network and nothing learned: colours by hue, things as connected parts, shapes by the outlines
that `shapes.LEVELS` draws, motions by tracks. It is for measuring whether generated videos show
what their prompts say; the tests measure the reader itself on drawn videos.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from pyratok_jax.data.world.shapes import LEVELS
from pyratok_jax.data.world.tracks import Track, find_tracks

LEAST_FRAMES = 5
_GRID = 28  # Samples a side of an outline, over +-`_REACH` of the root of its area.
_REACH = 1.3
_TURNS = 48  # Angles at which outlines are compared.
_BLURS = (0.0, 0.05, 0.1)  # Of outlines, in units of the root of their area: what decoders do.
_RINGS, _SECTORS = 6, 72  # Of the polar picture in which turning is a shift.
_LOOKS = 7  # Frames from which a shape is read.


@dataclasses.dataclass(frozen=True, order=True)
class Seen:
    """One thing in words of the vocabulary."""

    colour: str
    shape: str
    motion: str


def read_video(video: UInt8[np.ndarray, "t h w 3"]) -> tuple[Seen, ...]:
    """The things of a video without cuts, sorted.

    Raises:
        ValueError: fewer than `LEAST_FRAMES` frames, in which motions cannot be told apart.
    """
    if len(video) < LEAST_FRAMES:
        raise ValueError(f"{len(video)} frames are too few to read motions; give {LEAST_FRAMES}")
    return tuple(
        sorted(
            Seen(track.colour, read_shape(track, video), read_motion(track, video))
            for track in find_tracks(video)
        )
    )


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """How much of what a prompt says a video shows. Each is about all of the prompt's things.

    Attributes:
        colour: exactly the colours that are asked for.
        shape: as many things of each pair of colour and shape, whatever they do.
        count: as many things in all.
        motion: each motion as often, with the colour of the thing that does it.
        everything: all four of every thing.
    """

    colour: bool
    shape: bool
    count: bool
    motion: bool
    everything: bool


def compare(asked: Iterable[Seen], seen: Iterable[Seen]) -> Faithfulness:
    """Compare what is seen with what was asked for."""
    wanted, found = list(asked), list(seen)

    def same(*fields: str) -> bool:
        def sets(things: list[Seen]) -> Counter[tuple[str, ...]]:
            return Counter(tuple(getattr(thing, field) for field in fields) for thing in things)

        return sets(wanted) == sets(found)

    return Faithfulness(
        colour={thing.colour for thing in wanted} == {thing.colour for thing in found},
        shape=same("colour", "shape"),
        count=len(wanted) == len(found),
        motion=same("colour", "motion"),
        everything=same("colour", "shape", "motion"),
    )


@functools.cache
def _outlines() -> tuple[tuple[str, ...], Float[np.ndarray, "shapes turns n"]]:
    """Names of shapes, and their outlines at all angles and blurs, of zero mean and unit length."""
    fine = 96
    v, u = (np.mgrid[:fine, :fine] + 0.5) / fine * 3.2 - 1.6
    found = []
    for level in LEVELS.values():
        turned = []
        for angle in np.arange(_TURNS) * 2 * np.pi / _TURNS:
            cos, sin = np.cos(angle), np.sin(angle)
            solid = (level(cos * u + sin * v, cos * v - sin * u) < 0).astype(np.float32)
            side = float(np.sqrt(solid.sum()))
            turned += [_outline(ndimage.gaussian_filter(solid, side * blur)) for blur in _BLURS]
        found.append(np.stack(turned))
    return tuple(LEVELS), np.stack(found)


def _sampled(
    picture: Float[np.ndarray, "h w"], rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    return ndimage.map_coordinates(picture, [rows, columns], order=1, mode="constant")


def _outline(cover: Float[np.ndarray, "h w"]) -> Float[np.ndarray, " n"]:
    """Coverage in [0, 1] about its centre and in units of the root of its area."""
    total = cover.sum()
    y, x = (
        float((cover.sum(axis=1 - a) * np.arange(cover.shape[a])).sum() / total) for a in (0, 1)
    )
    steps = (np.arange(_GRID) + 0.5) / _GRID * 2 * _REACH - _REACH
    rows = np.repeat(y + steps * np.sqrt(total), _GRID)
    columns = np.tile(x + steps * np.sqrt(total), _GRID)
    flat = _sampled(cover, rows, columns)
    flat = flat - flat.mean()
    return flat / max(float(np.linalg.norm(flat)), 1e-6)


def _coverage(mask: np.ndarray, frame: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Pixels of a thing and around it, by how much of its colour they have.

    At ten pixels across a circle and a hexagon of whole pixels are often the same, and a decoder
    blurs arms and corners away before it loses them.
    """
    (box,) = ndimage.find_objects(mask.astype(int))
    box = tuple(slice(max(side.start - 4, 0), side.stop + 4) for side in box)
    mask, frame = mask[box], frame[box]
    inner, outer = ndimage.binary_erosion(mask), ndimage.binary_dilation(mask, iterations=2)
    if not inner.any():
        return mask.astype(np.float32)
    hues = frame.astype(np.float32) - frame.mean(axis=-1, dtype=np.float32, keepdims=True)
    amount = hues @ hues[inner].mean(axis=0)
    around = amount[outer & ~ndimage.binary_dilation(mask)]
    ground = float(np.median(around)) if len(around) else 0.0
    full = ndimage.maximum_filter(amount, 5)
    share = np.clip((amount - ground) / np.maximum(full - ground, 1e-3), 0.0, 1.0)
    deep = ndimage.binary_erosion(mask, iterations=2)
    return np.where(deep, 1.0, np.where(outer, share, 0.0)).astype(np.float32)


def read_shape(track: Track, video: UInt8[np.ndarray, "t h w 3"]) -> str:
    """The shape whose outline fits best over the frames that show most of the thing."""
    names, outlines = _outlines()
    order = np.argsort(-track.areas, kind="stable")[:_LOOKS]
    scores = np.zeros(len(names))
    for number in order:
        cover = _coverage(track.masks[number], video[track.frames[number]])
        fits = outlines @ _outline(cover)
        scores += fits.max(axis=1)
    return names[int(scores.argmax())]


def read_motion(track: Track, video: UInt8[np.ndarray, "t h w 3"]) -> str:
    """What a thing does, of `vocabulary.MOTIONS`."""
    span = track.frames - track.frames[0]
    if len(video) - len(track.frames) >= max(2, round(0.15 * len(video))):
        return "blinking"
    times = span / max(len(video) - 1, 1)
    radii = np.log(np.sqrt(track.areas))
    grown = _slope(times, radii)
    if abs(grown) > 0.55:
        return "growing" if grown > 0 else "shrinking"
    x, y = track.centres.T
    dx, dy = _slope(times, x), _slope(times, y)
    if max(abs(dx), abs(dy)) > 0.17:
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"
    if np.ptp(y) > 0.09 and np.ptp(y) > 2 * np.ptp(x):
        return "bouncing"
    return "spinning" if abs(_turned(track, video)) > 0.8 else "still"


def _slope(times: np.ndarray, values: np.ndarray) -> float:
    """Change over the whole video of the line of least squares."""
    if np.ptp(times) == 0:
        return 0.0
    return float(np.polyfit(times, values, 1)[0])


def _turned(track: Track, video: UInt8[np.ndarray, "t h w 3"]) -> float:
    """By how much a thing turns in all, radians, from the shifts of its polar picture."""
    pictures = [
        _polar(mask, video[number]) for number, mask in zip(track.frames, track.masks, strict=True)
    ]
    most = round(_SECTORS * 0.7 / (2 * np.pi))
    shifts = np.arange(-most, most + 1)
    total = 0.0
    for before, after in zip(pictures, pictures[1:], strict=False):
        fits = np.array([np.sum(np.roll(before, shift, axis=-1) * after) for shift in shifts])
        best = int(fits.argmax())
        if fits[best] - fits[most] > 0.004 * abs(fits[most]):
            total += float(shifts[best]) * 2 * np.pi / _SECTORS
    return total


def _polar(mask: np.ndarray, frame: np.ndarray) -> Float[np.ndarray, "2 rings sectors"]:
    """Outline and brightness of a thing over (ring, angle), the light's gradient taken out."""
    y, x = np.nonzero(mask)
    bright = frame.astype(np.float32).sum(axis=-1)
    inside = bright[y, x]
    plane = np.stack([np.ones_like(x), x - x.mean(), y - y.mean()], axis=1).astype(np.float32)
    fitted = plane @ np.linalg.lstsq(plane, inside, rcond=None)[0]
    texture = np.zeros(mask.shape, np.float32)
    texture[y, x] = (inside - fitted) / max(float(inside.mean()), 1.0)
    side = np.sqrt(len(y))
    radii = np.linspace(0.2, 0.85, _RINGS)[:, None] * side
    angles = np.arange(_SECTORS) * 2 * np.pi / _SECTORS
    rows, columns = y.mean() + radii * np.sin(angles), x.mean() + radii * np.cos(angles)
    outline = _sampled(mask.astype(np.float32), rows, columns)
    pattern = _sampled(texture, rows, columns)
    return np.stack([outline - outline.mean(axis=1, keepdims=True), 5 * pattern])
