"""From the similarity of tokens with text to masks of pixels, and to tracks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from pyratok_jax.evaluation.models.features import LevelFeatures, normalized
from pyratok_jax.evaluation.vision.crf import KernelSettings, mean_field_binary, video_kernels


def similarity_maps(level: LevelFeatures, queries: np.ndarray) -> np.ndarray:
    """Cosine of every token with every query, (r, h, w, n)."""
    return normalized(level.values) @ queries.T


def to_pixels(maps: np.ndarray, level: LevelFeatures, size: tuple[int, int]) -> np.ndarray:
    """Token maps (r, h, w, n) as pixel maps (t, height, width, n), bilinear over space.

    Args:
        maps: on the grid of `level`.
        level: gives the cells and which row shows which frame.
        size: height and width of the clip that was encoded; the grid may reach beyond them.
    """
    (ch, cw), (h, w) = level.cell, maps.shape[1:3]
    if (ch, cw) != (1, 1):
        maps = _resize(maps, (h * ch, w * cw))
    return maps[level.rows, : size[0], : size[1]]


def _resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shape = (maps.shape[0], *size, maps.shape[3])
    return np.asarray(jax.image.resize(jnp.asarray(maps), shape, "linear", antialias=False))


@dataclasses.dataclass
class FieldSettings(KernelSettings):
    """How the field over pixels is set up and solved.

    Attributes:
        threshold: similarity at even odds, as a share of the range of all similarities in a video,
            0 its least, 1 its greatest: independent of the offset of a text encoder's cosines.
        temperature: similarity above the threshold over log-odds.
        crf_iterations: of mean field; 0 leaves the field out.
    """

    threshold: float = 0.5
    temperature: float = 0.1
    crf_iterations: int = 5


def log_odds(maps: np.ndarray, settings: FieldSettings) -> np.ndarray:
    """Log-odds of similarities (t, h, w, n) by their range over all of them, float32."""
    low, high = float(maps.min()), float(maps.max())
    limit = low + settings.threshold * (high - low)
    return np.asarray((maps - limit) / settings.temperature, np.float32)


def solve_field(video: np.ndarray, logits: np.ndarray, settings: FieldSettings) -> np.ndarray:
    """Probability (t, h, w, n) of every unit at every pixel of `video`, from its log-odds."""
    flat = jnp.asarray(logits, jnp.float32).reshape(-1, logits.shape[-1])
    if not settings.crf_iterations:
        return np.asarray(jax.nn.sigmoid(flat)).reshape(logits.shape)
    kernels = video_kernels(video, settings)
    field = mean_field_binary(flat, kernels, settings.crf_iterations)
    return np.asarray(field).reshape(logits.shape)


def probabilities(video: np.ndarray, maps: np.ndarray, settings: FieldSettings) -> np.ndarray:
    """Probability of every unit at every pixel, after the field is solved.

    Args:
        video: uint8 (t, h, w, 3).
        maps: similarities (t, h, w, n) of the same size.
        settings: of the field.

    Returns:
        float32 (t, h, w, n).
    """
    return solve_field(video, log_odds(maps, settings), settings)


def unit_masks(chances: np.ndarray) -> np.ndarray:
    """Masks (n, t, h, w): a pixel belongs to its likeliest unit, if that has over one half."""
    winner = np.argmax(chances, axis=-1)
    masks = [(winner == i) & (chances[..., i] > 0.5) for i in range(chances.shape[-1])]
    return np.stack(masks)


def split_instances(mask: np.ndarray, least: int, most: int) -> list[np.ndarray]:
    """Connected parts of a mask (t, h, w) over space and time, the largest first.

    Args:
        mask: one unit's pixels.
        least: parts with fewer pixels are left out.
        most: number of parts.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if not count:
        return []
    sizes = np.bincount(labels.ravel())
    order = np.argsort(-sizes[1:], kind="stable")[:most] + 1
    return [labels == number for number in order if sizes[number] >= least]


def resize_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks (t, h, w) at another size, by the nearest pixel."""
    h, w = masks.shape[1:]
    rows = np.minimum(((np.arange(size[0]) + 0.5) * h / size[0]).astype(int), h - 1)
    columns = np.minimum(((np.arange(size[1]) + 0.5) * w / size[1]).astype(int), w - 1)
    return masks[:, rows][:, :, columns]
