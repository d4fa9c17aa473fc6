"""Inception score of videos (arXiv 1606.03498, of videos 1611.06624), in C3D's classes of UCF-101.

exp of the mean Kullback-Leibler divergence, in nats, of each video's distribution over classes from
the mean distribution: high where single videos are recognised and all together are varied.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from pyratok_jax.models.perceptual.c3d import C3D, FRAMES, SIDE

SPLITS = 10
PROTOCOL = (
    f"C3D of UCF-101, the first {FRAMES} frames, each resized to {SIDE}x{SIDE} (bilinear, corners "
    f"aligned), BGR less the mean clip; mean and deviation over {SPLITS} parts of the videos"
)


class VideoClasses:
    """C3D on uint8 clips."""

    def __init__(self, network: C3D) -> None:
        graph, self._state = nnx.split(network)

        def run(state: nnx.State, clip: Array) -> Array:
            return nnx.merge(graph, state)(clip[None])[0]

        self._run, self._resize = jax.jit(run), jax.jit(resized)

    def __call__(self, clip: UInt8[np.ndarray, "t h w 3"]) -> np.ndarray | None:
        """Logits (101,) float32 of a clip; None if it has fewer than 16 frames."""
        if len(clip) < FRAMES:
            return None
        video = self._resize(jnp.asarray(clip[:FRAMES], jnp.float32))
        return np.asarray(self._run(self._state, video), np.float32)


def resized(clip: Float[Array, "t h w c"]) -> Float[Array, "t 112 112 c"]:
    """Bilinear, the corners' pixels staying in the corners."""
    rows, columns = (_aligned(side) for side in clip.shape[1:3])
    return jnp.einsum("yh,xw,thwc->tyxc", rows, columns, clip, precision="highest")


def _aligned(side: int) -> np.ndarray:
    """(112, side) float32 weights of one axis."""
    at = np.linspace(0, side - 1, SIDE)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(side)), 0).astype(np.float32)


def inception_score(
    logits: Float[np.ndarray, "n classes"], splits: int = SPLITS
) -> tuple[float, float]:
    """Mean and standard deviation over parts of the videos, in float64.

    Raises:
        ValueError: fewer videos than parts.
    """
    if len(logits) < splits:
        raise ValueError(f"{len(logits)} videos are fewer than {splits} parts")
    values = np.asarray(logits, np.float64)
    logs = values - np.logaddexp.reduce(values, axis=1, keepdims=True)
    scores = []
    for part in np.array_split(logs, splits):
        chances = np.exp(part)
        mean = np.log(np.maximum(chances.mean(axis=0), 1e-300))
        scores.append(np.exp(np.mean(np.sum(chances * (part - mean), axis=1))))
    return float(np.mean(scores)), float(np.std(scores))
