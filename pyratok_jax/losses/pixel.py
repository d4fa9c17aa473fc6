"""Reconstruction terms: L1, structural similarity and LPIPS. Videos are in [-1, 1]."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from pyratok_jax.nn.halo import height_axis, with_halo
from pyratok_jax.nn.partitioning import shards_height, sum_over_devices

FILTER_SIZE = 11
FILTER_SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # for a data range of 1

# Distance of images in [-1, 1], one value per pair.
ImageDistance = Callable[[Float[Array, "n h w 3"], Float[Array, "n h w 3"]], Float[Array, "n"]]


def l1(video: Float[Array, "*n"], reconstruction: Float[Array, "*n"]) -> Float[Array, ""]:
    """Mean absolute difference."""
    return jnp.mean(jnp.abs(reconstruction.astype(jnp.float32) - video.astype(jnp.float32)))


@functools.cache
def _gaussian_window(size: int) -> np.ndarray:
    """(size - 10, size): row i holds the window that ends at i + 10; a convolution as a matrix."""
    taps = np.exp(-0.5 * ((np.arange(FILTER_SIZE) - FILTER_SIZE // 2) / FILTER_SIGMA) ** 2)
    taps /= taps.sum()
    matrix = np.zeros((size - FILTER_SIZE + 1, size), np.float32)
    for i in range(len(matrix)):
        matrix[i, i : i + FILTER_SIZE] = taps
    return matrix


def _blur(x: Float[Array, "n h w c"]) -> Float[Array, "n i j c"]:
    """Gaussian window of 11, sigma 1.5, no padding.

    As two products with banded matrices it is several times faster under a gradient than as
    convolutions; full precision, since variances are differences of nearly equal numbers.
    """
    rows, columns = _gaussian_window(x.shape[1]), _gaussian_window(x.shape[2])
    x = jnp.einsum("ih,nhwc->niwc", rows, x, precision="highest")
    return jnp.einsum("jw,niwc->nijc", columns, x, precision="highest")


def ssim(a: Float[Array, "n h w c"], b: Float[Array, "n h w c"]) -> Float[Array, "n"]:
    """Structural similarity of images in [0, 1], mean over positions and channels.

    Raises:
        ValueError: when a side is shorter than the window of 11.
    """
    if min(a.shape[1:3]) < FILTER_SIZE:
        raise ValueError(f"SSIM needs sides of at least {FILTER_SIZE} pixels, not {a.shape[1:3]}")
    return jnp.mean(similarity_map(a, b), axis=(1, 2, 3))


def similarity_map(
    a: Float[Array, "n h w c"], b: Float[Array, "n h w c"]
) -> Float[Array, "n i j c"]:
    """Structural similarity at every place of the window, for images in [0, 1]."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    moments = _blur(jnp.concatenate([a, b, a * a + b * b, a * b], axis=-1))
    mean_a, mean_b, squares, product = jnp.split(moments, 4, axis=-1)
    mean_squares = mean_a**2 + mean_b**2
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_squares + C1)
    structure = (2 * covariance + C2) / (squares - mean_squares + C2)
    return luminance * structure


def ssim_loss(
    video: Float[Array, "b t h w c"], reconstruction: Float[Array, "b t h w c"]
) -> Float[Array, ""]:
    """1 - mean SSIM over all frames of videos in [-1, 1]; the reconstruction is not clamped."""
    if not shards_height():
        x, y = (v.reshape(-1, *v.shape[2:]) for v in (video, reconstruction))
        return 1.0 - jnp.mean(ssim(0.5 * (x + 1.0), 0.5 * (y + 1.0)))
    b, t, h, w, c = video.shape
    total = sum_over_devices(functools.partial(_rows_similarity, h), video, reconstruction)
    windows = b * t * (h - FILTER_SIZE + 1) * (w - FILTER_SIZE + 1) * c
    return 1.0 - total / float(windows)  # may be beyond 32-bit integers


def _rows_similarity(
    height: int, video: Float[Array, "b t h w c"], reconstruction: Float[Array, "b t h w c"]
) -> Float[Array, ""]:
    """Sum of the similarities at the windows that begin in this device's rows."""
    pair = jnp.concatenate([video, reconstruction], axis=-1).astype(jnp.float32)
    reach = FILTER_SIZE - 1
    b, t, rows, w, c = video.shape
    pair = with_halo(pair, (0, reach))[0].reshape(b * t, rows + reach, w, 2 * c)
    x, y = jnp.split(0.5 * (pair + 1.0), 2, axis=-1)
    # Windows that would reach below the frame's last row do not count.
    first = jax.lax.axis_index(height_axis()) * rows
    real = first + jnp.arange(rows) <= height - FILTER_SIZE
    return jnp.sum(similarity_map(x, y) * real[:, None, None])


def choose_frames(t: int, count: int, key: PRNGKeyArray | None) -> Array:
    """Indices of `count` of t frames, the same for the whole batch.

    With a key one frame is drawn from each of `count` equal stretches of the clip, so that over
    many steps all frames are seen; without one they are evenly spaced. `count` 0 or >= t: all.
    """
    if count <= 0 or count >= t:
        return jnp.arange(t)
    edges = jnp.linspace(0.0, t, count + 1)
    place = 0.5 if key is None else jax.random.uniform(key, (count,))
    frames = edges[:-1] + place * (edges[1:] - edges[:-1])
    return jnp.clip(jnp.floor(frames).astype(jnp.int32), 0, t - 1)


def take_frames(video: Float[Array, "b t h w c"], frames: Array) -> Float[Array, "n h w c"]:
    """The chosen frames of every clip as one batch of images."""
    chosen = jnp.take(video, frames, axis=1)
    return chosen.reshape(-1, *video.shape[2:])


def lpips_loss(
    video: Float[Array, "b t h w 3"],
    reconstruction: Float[Array, "b t h w 3"],
    distance: ImageDistance,
    *,
    frames: int = 0,
    key: PRNGKeyArray | None = None,
) -> Float[Array, ""]:
    """Mean LPIPS over frames; with `frames` > 0 over that many, chosen by `choose_frames`."""
    chosen = choose_frames(video.shape[1], frames, key)
    return jnp.mean(distance(take_frames(video, chosen), take_frames(reconstruction, chosen)))
