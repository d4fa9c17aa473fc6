"""From the similarity of tokens with text to masks of pixels, and to tracks.

Masks are sharpened by fully connected conditional random fields, solved by mean field (Kraehenbuehl
and Koltun, 2011). Every pixel of a video is joined to every other one by Gaussian kernels: over
place and time, and over place, time and colour. Labels are to agree (Potts) the more the closer two
pixels are.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import ndimage

from pyratok_jax.evaluation.models.features import LevelFeatures, contrasted, normalized
from pyratok_jax.evaluation.vision.permutohedral import Lattice, build_lattice, lattice_filter


class Kernel(NamedTuple):
    """One pairwise term, ready to filter with: weight * k(i, j) / sqrt(s_i s_j).

    Attributes:
        lattice: of the kernel's positions.
        scale: (n, 1) 1 / sqrt(s_i), where s_i is the sum of the kernel over all j.
        weight: how much the term counts.
    """

    lattice: Lattice
    scale: Float[Array, "n 1"]
    weight: Float[Array, ""]


def make_kernel(positions: np.ndarray, weight: float) -> Kernel:
    """The kernel of positions (n, d) in units of its standard deviations."""
    lattice = build_lattice(positions)
    total = lattice_filter(lattice, jnp.ones((len(positions), 1), jnp.float32))
    return Kernel(lattice, jax.lax.rsqrt(total + 1e-20), jnp.float32(weight))


def place_positions(shape: tuple[int, int, int], space: float, time: float) -> np.ndarray:
    """Positions (t h w, 3) of a video's pixels: x and y over `space`, t over `time`.

    A still image (t = 1) needs no axis of time and gets (h w, 2).
    """
    t, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")
    axes = [x / space, y / space] + ([t / time] if shape[0] > 1 else [])
    return np.stack(axes, axis=-1).reshape(-1, len(axes))


@dataclasses.dataclass
class KernelSettings:
    """The two kernels of a video: smoothness in place and time, and likeness of colour.

    Attributes:
        place_weight: of the smoothness kernel; 0 leaves it out.
        place_space: its standard deviation in pixels.
        place_time: its standard deviation in frames.
        colour_weight: of the colour kernel; 0 leaves it out.
        colour_space: its standard deviation in pixels.
        colour_time: its standard deviation in frames.
        colour_range: its standard deviation in colour values 0 .. 255.
    """

    place_weight: float = 3.0
    place_space: float = 3.0
    place_time: float = 3.0
    colour_weight: float = 10.0
    colour_space: float = 60.0
    colour_time: float = 10.0
    colour_range: float = 13.0


def video_kernels(video: np.ndarray, settings: KernelSettings) -> list[Kernel]:
    """The kernels of a video uint8 (t, h, w, 3)."""
    shape, s = video.shape[:3], settings
    kernels = []
    if s.place_weight:
        place = place_positions(shape, s.place_space, s.place_time)
        kernels.append(make_kernel(place, s.place_weight))
    if s.colour_weight:
        place = place_positions(shape, s.colour_space, s.colour_time)
        colour = video.reshape(-1, 3).astype(np.float32) / s.colour_range
        kernels.append(make_kernel(np.concatenate([place, colour], axis=1), s.colour_weight))
    return kernels


def _message(kernels: Sequence[Kernel], q: Float[Array, "n c"]) -> Float[Array, "n c"]:
    total = jnp.zeros_like(q)
    for kernel in kernels:
        total += kernel.weight * kernel.scale * lattice_filter(kernel.lattice, kernel.scale * q)
    return total


@functools.partial(jax.jit, static_argnames="iterations")
def mean_field(
    unary: Float[Array, "n l"], kernels: Sequence[Kernel], iterations: int = 5
) -> Float[Array, "n l"]:
    """Marginals of n pixels over l labels.

    Args:
        unary: energy of each label: the negative logarithm of its probability.
        kernels: pairwise terms.
        iterations: number of updates of all pixels at once.
    """

    def update(_: int, q: Array) -> Array:
        return jax.nn.softmax(-unary + _message(kernels, q), axis=-1)

    return jax.lax.fori_loop(0, iterations, update, jax.nn.softmax(-unary, axis=-1))


@functools.partial(jax.jit, static_argnames="iterations")
def mean_field_binary(
    logits: Float[Array, "n u"], kernels: Sequence[Kernel], iterations: int = 5
) -> Float[Array, "n u"]:
    """As `mean_field` for u separate fields of two labels, "is it" and "is it not", at once.

    Args:
        logits: log-odds of "is it" before the field is solved.
        kernels: pairwise terms, shared by all fields.
        iterations: number of updates.

    Returns:
        Log-odds of the marginals of "is it": probabilities near 1 would be equal in float32.
    """
    # The two labels' probabilities add up to 1, so one filtering serves both.
    ones = _message(kernels, jnp.ones((logits.shape[0], 1), logits.dtype))

    def update(_: int, odds: Array) -> Array:
        return logits + 2 * _message(kernels, jax.nn.sigmoid(odds)) - ones

    return jax.lax.fori_loop(0, iterations, update, logits)


def similarity_maps(
    level: LevelFeatures, queries: np.ndarray, *, contrast: bool = False
) -> np.ndarray:
    """Cosine of every token with every query, (r, h, w, n).

    Args:
        level: its tokens.
        queries: unit vectors of texts (n, d).
        contrast: less the token's mean over all queries. A token that is like every text is like
            none of them in particular.
    """
    return contrasted(normalized(level.values) @ queries.T, contrast)


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
        threshold: similarity at even odds, as a share of the range of a unit's similarities in a
            video (of all units', where a pixel is of one alone), 0 its least, 1 its greatest:
            independent of the offset of its text's cosines.
        temperature: similarity above the threshold over log-odds.
        crf_iterations: of mean field; 0 leaves the field out.
    """

    threshold: float = 0.5
    temperature: float = 0.1
    crf_iterations: int = 5


def log_odds(maps: np.ndarray, settings: FieldSettings, *, shared: bool = False) -> np.ndarray:
    """Log-odds of similarities (t, h, w, n), float32.

    Args:
        maps: of n units.
        settings: threshold and temperature.
        shared: the threshold lies in the range of all units; False: each unit has its own.
    """
    axes = (0, 1, 2, 3) if shared else (0, 1, 2)
    low, high = maps.min(axis=axes, keepdims=True), maps.max(axis=axes, keepdims=True)
    limit = low + settings.threshold * (high - low)
    return np.asarray((maps - limit) / settings.temperature, np.float32)


def solve_field(video: np.ndarray, logits: np.ndarray, settings: FieldSettings) -> np.ndarray:
    """Log-odds (t, h, w, n) of every unit at every pixel of `video`, after the field."""
    flat = jnp.asarray(logits, jnp.float32).reshape(-1, logits.shape[-1])
    if not settings.crf_iterations:
        return np.asarray(flat).reshape(logits.shape)
    kernels = video_kernels(video, settings)
    field = mean_field_binary(flat, kernels, settings.crf_iterations)
    return np.asarray(field).reshape(logits.shape)


def unit_masks(odds: np.ndarray, *, exclusive: bool = False) -> np.ndarray:
    """Masks (n, t, h, w) of the pixels at which a unit has more than even odds.

    Args:
        odds: log-odds (t, h, w, n).
        exclusive: only where no other unit is likelier; False: masks of units may overlap.
    """
    masks = odds > 0
    if exclusive:
        masks &= np.argmax(odds, axis=-1)[..., None] == np.arange(odds.shape[-1])
    return np.moveaxis(masks, -1, 0)


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
