"""Fully connected conditional random fields, solved by mean field (Kraehenbuehl and Koltun, 2011).

Every pixel of a video is joined to every other one by Gaussian kernels: over place and time, and
over place, time and colour. Labels are to agree (Potts) the more the closer two pixels are.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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
        Marginal probability of "is it".
    """
    # The two labels' probabilities add up to 1, so one filtering serves both.
    ones = _message(kernels, jnp.ones((logits.shape[0], 1), logits.dtype))

    def update(_: int, q: Array) -> Array:
        return jax.nn.sigmoid(logits + 2 * _message(kernels, q) - ones)

    return jax.lax.fori_loop(0, iterations, update, jax.nn.sigmoid(logits))
