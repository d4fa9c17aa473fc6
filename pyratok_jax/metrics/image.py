"""Quality of reconstructions, by fixed conventions that every report names.

All functions take uint8 RGB videos (t, h, w, 3) of the true size: what was padded is cropped
first. Quality is measured on decoded pixels rounded to 8 bits, before any file is written.

PSNR has data range 1 on [0, 1]; the headline is the mean over frames of each frame's PSNR, and
`psnr_video` beside it takes one mean squared error over the whole video. A PSNR is capped at
100 dB, so that identical frames leave every mean finite. SSIM is the mean over frames and colour
channels, on positions whose window is inside the frame: gaussian 11/1.5 (headline) and uniform
7x7 with sample covariances. LPIPS is the mean over frames.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from scipy import ndimage

from pyratok_jax.data.padding import to_model_range

PSNR_CAP = 100.0
GAUSSIAN, GAUSSIAN_SIGMA, UNIFORM = 11, 1.5, 7
# The deepest of LPIPS's backbones halves a frame four times after a stem of stride 4.
LPIPS_SMALLEST = 32
_LPIPS_PIXELS = 400_000

PROTOCOL = {
    "psnr": "data range 1, mean over frames of per-frame PSNR, capped at 100 dB",
    "psnr_video": "data range 1, from the mean squared error of the whole video",
    "ssim": "gaussian window 11, sigma 1.5, mean over frames and RGB channels",
    "ssim_uniform": "uniform window 7x7, sample covariance, mean over frames and RGB channels",
    "lpips": "VGG16, mean over frames",
    "lpips_alex": "AlexNet, mean over frames",
    "bpp": "bits of all tokens / (true frames x height x width)",
    "psnr_tokenbench": "as token_bench computes it, see `tokenbench_psnr`",
    "utilisation": "distinct codes used / vocabulary, per level",
    "perplexity": "exp of the entropy of the codes used, per level",
    "pixels": "8-bit RGB, padding cropped, before video compression",
}

Perceptual = Callable[[Array, Array], Array]


def frame_errors(original: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Mean squared error of every frame on the scale [0, 1]: float64 (t,).

    Raises:
        ValueError: not two uint8 videos (t, h, w, 3) of one shape.
    """
    _check(original, reconstruction)
    difference = original.astype(np.int32) - reconstruction
    squares = np.square(difference).reshape(len(difference), -1)
    return np.asarray(squares.mean(axis=1, dtype=np.float64) / 255.0**2)


def tokenbench_psnr(original: np.ndarray, reconstruction: np.ndarray) -> float:
    """PSNR in dB of a video as NVIDIA's token_bench computes it, for its leaderboard alone.

    There both the difference and its square stay 8-bit numbers and wrap around at 256, so that the
    figure is not a PSNR where errors are 16 or more: it is too high.

    Raises:
        ValueError: not two uint8 videos (t, h, w, 3) of one shape.
    """
    _check(original, reconstruction)
    difference = original - reconstruction
    error = float(np.mean(np.square(difference), dtype=np.float64))
    return float(20 * np.log10(255.0 / (np.sqrt(error) + np.finfo(np.float32).eps)))


def psnr_of(error: np.ndarray | float) -> np.ndarray:
    """PSNR in dB of mean squared errors on the scale [0, 1], capped at `PSNR_CAP`."""
    floor = 10.0 ** (-PSNR_CAP / 10.0)
    return -10.0 * np.log10(np.maximum(np.asarray(error, np.float64), floor))


def ssim_frames(
    original: np.ndarray, reconstruction: np.ndarray, window: str = "gaussian"
) -> np.ndarray:
    """SSIM of every frame: float64 (t,), NaN where a frame is smaller than the window.

    Args:
        original: uint8 (t, h, w, 3).
        reconstruction: the same shape.
        window: "gaussian" (11 x 11, sigma 1.5) or "uniform" (7 x 7).

    Raises:
        ValueError: unequal shapes, or an unknown window.
    """
    _check(original, reconstruction)
    sizes = {"gaussian": GAUSSIAN, "uniform": UNIFORM}
    if window not in sizes:
        raise ValueError(f"unknown SSIM window {window!r}; there are {', '.join(sizes)}")
    if min(original.shape[1:3]) < sizes[window]:
        return np.full(len(original), np.nan)
    one = _gaussian_ssim if window == "gaussian" else _uniform_ssim
    pairs = zip(original, reconstruction, strict=True)
    return np.array([float(one(a, b)) for a, b in pairs], np.float64)


@jax.jit
def _gaussian_ssim(a: Array, b: Array) -> Float[Array, ""]:
    a, b = (x.astype(jnp.float32) / 255.0 for x in (a, b))
    return dm_pix.ssim(a, b, filter_fn=_gaussian_blur)


def _gaussian_blur(x: Float[Array, "h w c"]) -> Float[Array, "h2 w2 c"]:
    """Separable blur as a sum of shifted views, far faster on CPUs than a convolution per row."""
    positions = np.arange(GAUSSIAN) - GAUSSIAN // 2
    weights = np.exp(-0.5 * (positions / GAUSSIAN_SIGMA) ** 2)
    for axis in (0, 1):
        kept = x.shape[axis] - GAUSSIAN + 1
        views = (jax.lax.slice_in_dim(x, i, i + kept, axis=axis) for i in range(GAUSSIAN))
        x = sum(w * view for w, view in zip(weights / weights.sum(), views, strict=True))
    return x


def _uniform_ssim(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64) / 255.0, b.astype(np.float64) / 255.0
    border = UNIFORM // 2

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(x, (UNIFORM, UNIFORM, 1))[border:-border, border:-border]

    sample = UNIFORM**2 / (UNIFORM**2 - 1)
    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = (sample * (mean(x * x) - mean(x) ** 2) for x in (a, b))
    covariance = sample * (mean(a * b) - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float(np.mean(above / below))


def lpips_frames(
    original: np.ndarray, reconstruction: np.ndarray, network: Perceptual
) -> np.ndarray:
    """LPIPS of every frame: float64 (t,), NaN for frames smaller than 32 pixels.

    Args:
        original: uint8 (t, h, w, 3).
        reconstruction: the same shape.
        network: takes two batches (n, h, w, 3) in [-1, 1], returns (n,). A module is
            compiled, once per shape.
    """
    _check(original, reconstruction)
    frames, height, width = original.shape[:3]
    if min(height, width) < LPIPS_SMALLEST:
        return np.full(frames, np.nan)
    most = max(_LPIPS_PIXELS // (height * width), 1)
    chunks = -(-frames // most)
    size = -(-frames // chunks)  # Chunks of one size need one compilation.
    values: list[float] = []
    for start in range(0, frames, size):
        at = np.minimum(np.arange(start, start + size), frames - 1)
        a, b = (_signed(video[at]) for video in (original, reconstruction))
        distances = _apply(network, a, b) if isinstance(network, nnx.Module) else network(a, b)
        values += np.asarray(distances, np.float64).reshape(-1)[: frames - start].tolist()
    return np.array(values, np.float64)


@nnx.jit
def _apply(network: nnx.Module, a: Array, b: Array) -> Float[Array, "n"]:
    return network(a, b)


def _signed(video: np.ndarray) -> Array:
    return to_model_range(jnp.asarray(video))


def _check(original: np.ndarray, reconstruction: np.ndarray) -> None:
    for video in (original, reconstruction):
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
            raise ValueError(f"expected uint8 (t, h, w, 3), got {video.dtype} {video.shape}")
    if original.shape != reconstruction.shape:
        raise ValueError(f"cannot compare {original.shape} with {reconstruction.shape}")


class Quality:
    """The quality of one video, measured piece by piece so that it never has to be in memory.

    Args:
        lpips: networks by name ("vgg", "alex"); the results are `lpips` and `lpips_alex`.
        lpips_every: LPIPS, the slowest, is measured on every n-th frame from frame 0.
    """

    def __init__(
        self, lpips: Mapping[str, Perceptual] | None = None, *, lpips_every: int = 1
    ) -> None:
        self._lpips, self._every = dict(lpips or {}), lpips_every
        self._errors: list[float] = []
        self._frames: dict[str, list[float]] = {}

    def add(self, original: np.ndarray, reconstruction: np.ndarray) -> None:
        """Measure the next frames, uint8 (t, h, w, 3) each."""
        looked = slice(-len(self._errors) % self._every, None, self._every)
        self._errors += frame_errors(original, reconstruction).tolist()
        values = {
            "ssim": ssim_frames(original, reconstruction),
            "ssim_uniform": ssim_frames(original, reconstruction, "uniform"),
        }
        for name, network in self._lpips.items():
            key = "lpips" if name == "vgg" else f"lpips_{name}"
            if len(original[looked]):
                values[key] = lpips_frames(original[looked], reconstruction[looked], network)
        for key, frames in values.items():
            self._frames.setdefault(key, []).extend(frames.tolist())

    def result(self) -> dict[str, float | None]:
        """psnr, psnr_video, ssim, ssim_uniform and LPIPS; None where frames are too small.

        Raises:
            ValueError: nothing was added.
        """
        if not self._errors:
            raise ValueError("no frame was measured")
        result: dict[str, float | None] = {
            "psnr": float(np.mean(psnr_of(np.array(self._errors)))),
            "psnr_video": float(psnr_of(float(np.mean(self._errors)))),
        }
        for key, frames in self._frames.items():
            mean = float(np.mean(frames))
            result[key] = mean if np.isfinite(mean) else None
        return result


def quality(
    originals: Iterable[np.ndarray],
    reconstructions: Iterable[np.ndarray],
    lpips: Mapping[str, Perceptual] | None = None,
) -> dict[str, float | None]:
    """Mean over videos of each video's quality (see `Quality.result` for the keys).

    Raises:
        ValueError: no video, not as many reconstructions as originals, or unequal shapes.
    """
    results = []
    for original, reconstruction in zip(originals, reconstructions, strict=True):
        measured = Quality(lpips)
        measured.add(original, reconstruction)
        results.append(measured.result())
    return mean_quality(results)


def mean_quality(results: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean over videos, each with equal weight, leaving out those where a value is None.

    Raises:
        ValueError: no result.
    """
    if not results:
        raise ValueError("no video was measured")
    means: dict[str, float | None] = {}
    for key in results[0]:
        known = [value for value in (result[key] for result in results) if value is not None]
        means[key] = float(np.mean(known)) if known else None
    return means
