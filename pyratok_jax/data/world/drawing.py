"""Scenes to pixels and masks, vectorised over frames."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from pyratok_jax.data.world.scenes import Backdrop, Scene, Thing
from pyratok_jax.data.world.shapes import LEVELS
from pyratok_jax.data.world.vocabulary import COLOURS

_MARGIN = 0.35  # of a side, for the camera's motion


@dataclasses.dataclass(frozen=True)
class Film:
    """A drawn scene.

    Attributes:
        frames: pixels.
        masks: of each thing: where it is visible, what stands in front of it left out.
        boxes: of each thing and frame (left, top, right, bottom), the last two exclusive; zeros
            where nothing of it is visible.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    masks: Bool[np.ndarray, "n t h w"]
    boxes: Int[np.ndarray, "n t 4"]


def draw_film(scene: Scene, frames: int, height: int, width: int) -> Film:
    """Draw a scene; equal arguments give equal bytes."""
    times = np.arange(frames) / max(frames - 1, 1)
    shots = (times >= scene.cut).astype(int) if scene.cut is not None else np.zeros(frames, int)
    canvas = np.zeros((frames, height, width, 3), np.float32)
    for number, backdrop in enumerate(scene.backdrops):
        here = np.flatnonzero(shots == number)
        canvas[here] = _backdrop(backdrop, times[here], height, width)
    masks = np.zeros((len(scene.things), frames, height, width), bool)
    for number, thing in enumerate(scene.things):
        here = np.flatnonzero(shots == thing.shot)
        window, alpha, colour = _thing(thing, times[here], height, width)
        inside = np.ix_(here, np.arange(*window[:2]), np.arange(*window[2:]))
        part = canvas[inside]
        canvas[inside] = part + alpha[..., None] * (colour - part)
        solid = alpha > 0.5
        for earlier in range(number):
            masks[earlier][inside] &= ~solid
        masks[number][inside] = solid
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Film(pixels, masks, boxes_of(masks))


def boxes_of(masks: Bool[np.ndarray, "n t h w"]) -> Int[np.ndarray, "n t 4"]:
    """Tight boxes of masks, see `Film.boxes`."""
    rows, columns = np.any(masks, axis=3), np.any(masks, axis=2)
    left, top = columns.argmax(axis=2), rows.argmax(axis=2)
    right = masks.shape[3] - columns[..., ::-1].argmax(axis=2)
    bottom = masks.shape[2] - rows[..., ::-1].argmax(axis=2)
    boxes = np.stack([left, top, right, bottom], axis=-1)
    return np.where(rows.any(axis=2)[..., None], boxes, 0)


def _thing(
    thing: Thing, times: Float[np.ndarray, "t"], height: int, width: int
) -> tuple[tuple[int, int, int, int], Float[np.ndarray, "t h w"], Float[np.ndarray, "t h w 3"]]:
    """(window of rows and columns that holds it at all times, coverage, colours)."""
    x, y, radius, angle, shown = (np.asarray(v, np.float32) for v in thing.pose(times))
    x, y, radius = x * width, y * height, radius * min(height, width)
    reach = 1.1 * radius
    top, bottom = _clipped(y - reach, y + reach, height)
    left, right = _clipped(x - reach, x + reach, width)
    rows = np.arange(top, bottom, dtype=np.float32)[None, :, None] + 0.5
    columns = np.arange(left, right, dtype=np.float32)[None, None, :] + 0.5
    x, y, radius = (a[:, None, None] for a in (x, y, radius))
    dx, dy = (columns - x) / radius, (rows - y) / radius
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    alpha = np.clip(0.5 - LEVELS[thing.shape](u, v) * radius, 0.0, 1.0)
    alpha = alpha * shown[:, None, None]
    light = 1.0 - 0.12 * (dx + dy)  # from above and the left
    if thing.texture == "striped":
        light = light * np.where(np.sin(7.5 * u) > 0.15, 0.72, 1.0)
    elif thing.texture == "dotted":
        light = light * np.where(np.sin(6.5 * u) * np.sin(6.5 * v) > 0.45, 0.6, 1.0)
    base = np.asarray(COLOURS[thing.colour], np.float32) + np.asarray(thing.tint, np.float32)
    colour = np.clip(light[..., None] * base, 0.0, 255.0)
    return (top, bottom, left, right), alpha, colour


def _clipped(low: np.ndarray, high: np.ndarray, size: int) -> tuple[int, int]:
    if not len(low):
        return 0, 1
    first = int(np.clip(np.floor(low.min()) - 1, 0, size - 1))
    return first, int(np.clip(np.ceil(high.max()) + 1, first + 1, size))


def _backdrop(
    backdrop: Backdrop, times: Float[np.ndarray, "t"], height: int, width: int
) -> Float[np.ndarray, "t h w 3"]:
    """The background, through a window that pans over a larger picture."""
    tall, wide = round(height * (1 + 2 * _MARGIN)), round(width * (1 + 2 * _MARGIN))
    texture = _texture(np.random.default_rng(backdrop.seed), backdrop.kind, tall, wide)
    room = np.array([(tall - height) / 2, (wide - width) / 2])
    way = np.outer(times - 0.5, [backdrop.pan[1] * height, backdrop.pan[0] * width])
    corners = np.rint(np.clip(room + way, 0, 2 * room)).astype(int)
    return np.stack([texture[r : r + height, c : c + width] for r, c in corners])


def _texture(
    rng: np.random.Generator, kind: str, height: int, width: int
) -> Float[np.ndarray, "h w 3"]:
    """A pale or dark picture: its colours are far less saturated than those of things."""
    ends = rng.uniform(50, 200, (2, 1)) + rng.uniform(-22, 22, (2, 3))
    if kind == "gradient":
        share = _resized(rng.uniform(0, 1, (2, 2)), height, width)
    elif kind == "noise":
        share = np.zeros((height, width), np.float32)
        for cells, weight in ((3, 0.5), (7, 0.3), (17, 0.2)):
            share = share + _resized(rng.uniform(0, 1, (cells, cells)), height, width) * weight
    else:
        scale = rng.uniform(0.06, 0.16) * min(height, width)
        y, x = np.mgrid[:height, :width]
        across = (x / scale).astype(int)
        share = (across + (y / scale).astype(int) * (kind == "checks")) % 2
        ends[1] = ends[0] + rng.choice([-1, 1]) * rng.uniform(20, 45)
    grain = rng.normal(0, rng.uniform(0, 4), (height, width, 1))
    picture = ends[0] + np.asarray(share)[..., None] * (ends[1] - ends[0]) + grain
    return picture.astype(np.float32)


def _resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
