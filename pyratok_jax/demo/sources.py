"""Sources of clips beside the built-in videos, and random colours for any of them.

Moving shapes are drawn on the spot: flat areas and sharp edges. Over photographs a camera pans and
zooms. Colours change by hue, saturation, gain and order of channels.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pyratok_jax.assets.fetch import cache_folder
from pyratok_jax.errors import UserError
from pyratok_jax.io.atomic import atomic_path

SHAPES = ("circle", "square", "triangle")


def shape_clips(
    cache_dir: str | os.PathLike | None, clips: int, frames: int, size: int, seed: int = 0
) -> np.ndarray:
    """Clips uint8 (clips, frames, size, size, 3), each of one to four shapes; always the same ones.

    A source of `demo.clips`, which nothing is cached of: `cache_dir` is not used.
    """
    del cache_dir
    rng = np.random.default_rng((seed, clips, frames, size))
    return np.stack([shape_clip(rng, frames, size) for _ in range(clips)])


def shape_clip(rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
    """One clip, uint8 (frames, size, size, 3): shapes that move, grow and hide one another."""
    if rng.random() < 0.5:
        grey = rng.integers(60, 200, (2, 2, 1)).repeat(3, axis=2)
        corners = np.clip(grey + rng.integers(-10, 11, (2, 2, 3)), 0, 255)
    else:
        corners = rng.integers(0, 256, (2, 2, 3))
    picture = Image.fromarray(corners.astype(np.uint8))
    film = np.repeat(
        np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))[None], frames, axis=0
    )
    y, x = np.mgrid[:size, :size]
    for _ in range(rng.integers(1, 5)):
        shape, colour = SHAPES[rng.integers(3)], rng.integers(0, 256, 3)
        start, radius = rng.uniform(0, size, 2), rng.uniform(0.06, 0.3) * size
        step = rng.uniform(-0.05, 0.05, 2) * size * (rng.random() < 0.8)
        growth = 1 + rng.uniform(-0.03, 0.03) * (rng.random() < 0.3)
        for t in range(frames):
            dy, dx = y - start[0] - t * step[0], x - start[1] - t * step[1]
            film[t][_inside(shape, dy, dx, radius * growth**t)] = colour
    return film


def _inside(shape: str, dy: np.ndarray, dx: np.ndarray, radius: float) -> np.ndarray:
    if shape == "circle":
        return dy**2 + dx**2 <= radius**2
    if shape == "square":
        return np.maximum(abs(dy), abs(dx)) <= 0.85 * radius
    return (dy <= 0.8 * radius) & (abs(dx) <= 0.6 * (dy + radius))


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SMALLEST = 160  # side in pixels; below it a picture is an icon


def photo_clips(
    folder: str | Path, clips: int, frames: int, size: int, seed: int = 0
) -> np.ndarray:
    """Clips uint8 (clips, frames, size, size, 3) over the pictures of a folder, searched deep.

    Each picture gives the same number of clips. What is transparent is filled with one colour. The
    result is kept in the cache folder, for as long as the folder holds the same files.

    Args:
        folder: of JPEG, PNG or WebP files; smaller ones than `SMALLEST` are left out.
        clips: number of clips.
        frames: frames of a clip.
        size: its side in pixels.
        seed: of all choices.

    Raises:
        UserError: the folder holds no picture that can be read.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [(str(path.relative_to(folder)), path.stat().st_size) for path in paths]
    mark = hashlib.sha256(repr((files, clips, frames, size, seed)).encode()).hexdigest()[:16]
    target = cache_folder() / "clips" / f"photos_{clips}x{frames}x{size}_{mark}.npy"
    if target.exists():
        return np.load(target, mmap_mode="r")
    rng = np.random.default_rng(seed)
    pictures = [path for path in paths if _large_enough(path)]
    if not pictures:
        raise UserError(
            f"data.photos {folder} holds no picture of {SMALLEST} pixels or more a side"
        )
    out = np.empty((clips, frames, size, size, 3), np.uint8)
    slots = rng.permutation(clips)
    for number, path in enumerate(pictures):
        picture = None
        for slot in slots[number :: len(pictures)]:
            picture = picture or _opened(path, rng)
            out[slot] = _pan(picture, rng, frames, size)
    with atomic_path(target) as scratch:
        np.save(scratch, out)
    return out


def _large_enough(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return min(picture.size) >= SMALLEST
    except (UnidentifiedImageError, OSError):
        return False


def _opened(path: Path, rng: np.random.Generator) -> Image.Image:
    picture = Image.open(path).convert("RGBA")
    picture.thumbnail((1600, 1600))
    colour = tuple(int(x) for x in rng.integers(0, 256, 3))
    ground = Image.new("RGBA", picture.size, (*colour, 255))
    return Image.alpha_composite(ground, picture).convert("RGB")


def _pan(picture: Image.Image, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
    """One clip: the window moves and grows evenly; half of all cameras hardly move."""
    width, height = picture.size
    largest = min(width, height) - 1
    side = np.exp(rng.uniform(np.log(min(size, largest)), np.log(largest)))
    speed = 0.4 * rng.random() ** 3
    sides = side * np.linspace(1, np.exp(rng.uniform(-speed, speed)), frames)
    sides = np.clip(sides, 8, largest)
    start = rng.uniform(0, [width - side, height - side])
    step = rng.uniform(-speed, speed, 2) * side
    frames_out = []
    for t, now in zip(np.linspace(0, 1, frames), sides, strict=True):
        left = float(np.clip(start[0] + t * step[0] + (side - now) / 2, 0, width - now))
        top = float(np.clip(start[1] + t * step[1] + (side - now) / 2, 0, height - now))
        box = (left, top, left + float(now), top + float(now))
        small = picture.resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=2.0)
        frames_out.append(np.asarray(small))
    return np.stack(frames_out)


_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_NAMES = ("colour", "flat")


def augment(
    video: np.ndarray, rng: np.random.Generator, chances: Mapping[str, float]
) -> np.ndarray:
    """Clips uint8 (b, t, h, w, 3) of which some have other colours.

    Args:
        video: is not changed.
        rng: of all choices; as many numbers are drawn whatever the clips hold.
        chances: by name, of a clip's "colour" being changed and of it being replaced by a "flat"
            one of one or two colours. Absent ones are 0.

    Raises:
        KeyError: an unknown name.
    """
    unknown = set(chances) - set(_NAMES)
    if unknown:
        raise KeyError(f"unknown augmentation {sorted(unknown)}; expected of {', '.join(_NAMES)}")
    video = video.copy()
    for clip in video:
        change, flat = rng.random(2) < [chances.get(name, 0.0) for name in _NAMES]
        matrix, offset = colour_map(rng)
        colours = rng.integers(0, 256, (2, 3))
        edge = int(rng.integers(2 * clip.shape[2]))
        if flat:
            clip[:] = colours[0]
            clip[:, :, edge:] = colours[1]
        elif change:
            mapped = clip.astype(np.float32) @ matrix + offset
            clip[:] = np.clip(np.rint(mapped), 0, 255).astype(np.uint8)
    return video


def colour_map(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random affine map of RGB rows: x @ (3, 3) + (3,), about the middle grey.

    Channels may be permuted; saturation is scaled by 0.5 to 1.8, each channel by 0.8 to 1.25, and
    brightness moves by up to 20.
    """
    order = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
    saturation = np.exp(rng.uniform(np.log(0.5), np.log(1.8)))
    grey = np.repeat(_GREY[:, None], 3, axis=1)
    matrix = (saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * grey)[order]
    matrix = matrix * np.exp(rng.uniform(np.log(0.8), np.log(1.25), 3)).astype(np.float32)
    offset = rng.uniform(-20, 20) + 127.5 - np.full(3, 127.5) @ matrix
    return matrix.astype(np.float32), offset.astype(np.float32)
