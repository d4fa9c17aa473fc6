"""Pictures of videos and tokens: error maps, token maps, panels side by side. All uint8 RGB."""

from collections.abc import Sequence
from functools import cache

import matplotlib
import numpy as np
from PIL import Image

from pyratok_jax.nn.settings import Stride

# An error of this many of 255 grey levels has the brightest colour, in every picture.
ERROR_FULL_SCALE = 64
# Colours reach this percentile of each component's size; the rest saturates.
_COLOUR_REACH = 98.0
_MOST_FITTED = 50_000


@cache
def error_colours() -> np.ndarray:
    """Colour of each error 0..255: uint8 (256, 3), black over red to pale yellow."""
    scale = np.minimum(np.arange(256) / ERROR_FULL_SCALE, 1.0)
    return np.rint(matplotlib.colormaps["inferno"](scale)[:, :3] * 255).astype(np.uint8)


def error_map(original: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Absolute error, mean over RGB, in colours of one fixed scale: uint8 (t, h, w, 3).

    Raises:
        ValueError: unequal shapes.
    """
    if original.shape != reconstruction.shape:
        raise ValueError(f"cannot compare {original.shape} with {reconstruction.shape}")
    difference = np.abs(original.astype(np.int16) - reconstruction).mean(axis=-1)
    return error_colours()[np.rint(difference).astype(np.uint8)]


def token_maps(
    embeddings: Sequence[np.ndarray], frames: int, height: int, width: int
) -> list[np.ndarray]:
    """Videos in which every token is a rectangle, coloured by its code's embedding.

    The three colours are the first three principal components of the embeddings of all levels
    together (each level centred and of equal weight), so that a colour means the same in every
    level of a clip.

    Args:
        embeddings: (t, h, w, D) per level, any float type.
        frames: frames of the clip as it was encoded, padding included.
        height: its height, padding included.
        width: its width, padding included.

    Returns:
        One uint8 video (frames, height, width, 3) per level.

    Raises:
        ValueError: a grid that does not divide the clip.
    """
    strides = [_stride(e.shape[:3], (frames, height, width)) for e in embeddings]
    colours = _principal_colours([np.asarray(e, np.float32) for e in embeddings])
    return [_spread(c, s, frames) for c, s in zip(colours, strides, strict=True)]


def _stride(grid: tuple[int, ...], clip: tuple[int, int, int]) -> Stride:
    (t, h, w), (frames, height, width) = grid, clip
    later = frames - 1, t - 1  # Frame 0 has tokens of its own.
    whole = later[0] == 0 if t == 1 else later[0] % later[1] == 0 and later[0] > 0
    if not whole or height % h or width % w or height // h != width // w:
        raise ValueError(f"a token grid of {grid} does not divide a clip of {clip}")
    return (later[0] // later[1] if t > 1 else 1), height // h


def _principal_colours(levels: list[np.ndarray]) -> list[np.ndarray]:
    centred = [(e - e.mean(axis=(0, 1, 2))).reshape(-1, e.shape[-1]) for e in levels]
    share = max(_MOST_FITTED // len(centred), 1)
    fitted = [e[:: -(-len(e) // share)] for e in centred]
    covariance = sum(e.T.astype(np.float64) @ e / len(e) for e in fitted)
    components = np.linalg.eigh(covariance)[1][:, ::-1][:, :3]
    # An eigenvector's sign is arbitrary: its largest entry is made positive.
    largest = np.abs(components).argmax(axis=0)
    components *= np.where(np.take_along_axis(components, largest[None], axis=0) < 0, -1, 1)
    components = np.pad(components, ((0, 0), (0, 3 - components.shape[1])))
    projected = [e @ components for e in centred]
    reach = np.percentile(np.abs(np.concatenate(projected)), _COLOUR_REACH, axis=0)
    # A component without spread stays in the middle of its colour.
    scale = np.where(reach > 1e-6, 0.5 / np.maximum(reach, 1e-6), 0.0)
    return [
        np.rint(np.clip(p * scale + 0.5, 0, 1) * 255).astype(np.uint8).reshape(*e.shape[:3], 3)
        for p, e in zip(projected, levels, strict=True)
    ]


def _spread(colours: np.ndarray, stride: Stride, frames: int) -> np.ndarray:
    dt, ds = stride
    at = np.concatenate([[0], 1 + np.arange(frames - 1) // dt])
    return colours[at].repeat(ds, axis=1).repeat(ds, axis=2)


def side_by_side(videos: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Videos (t, h, w, 3) of one size in a row on black, cut to even sides by added black."""
    t, height, width = videos[0].shape[:3]
    total = len(videos) * width + (len(videos) - 1) * gap
    row = np.zeros((t, height + height % 2, total + total % 2, 3), np.uint8)
    for number, video in enumerate(videos):
        left = number * (width + gap)
        row[:, :height, left : left + width] = video
    return row


def fit_within(video: np.ndarray, side: int) -> np.ndarray:
    """A video whose longer side is at most `side`, shrunk by area averaging where it is larger."""
    height, width = video.shape[1:3]
    scale = side / max(height, width)
    if scale >= 1:
        return video
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    frames = (Image.fromarray(frame).resize(size, Image.Resampling.BOX) for frame in video)
    return np.stack([np.asarray(frame) for frame in frames])
