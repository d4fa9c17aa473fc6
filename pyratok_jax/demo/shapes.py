"""Short clips of moving shapes in any colours, drawn on the spot: flat areas and sharp edges."""

import os

import numpy as np
from PIL import Image

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
