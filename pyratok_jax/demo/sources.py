"""Short clips out of photographs: a camera that pans and zooms over each."""

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pyratok_jax.assets.fetch import cache_folder
from pyratok_jax.errors import UserError

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
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{os.getpid()}_{target.name}")
    np.save(scratch, out)
    os.replace(scratch, target)
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
    """One clip: the window moves and grows evenly; half of all cameras stand nearly still."""
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
