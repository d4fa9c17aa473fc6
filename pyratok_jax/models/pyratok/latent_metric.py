"""Errors of latents that do not count alike in all channels: e M e = |e R|^2, R the root of M."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float


def square_root(metric: Float[np.ndarray, "z z"]) -> Float[np.ndarray, "z z"]:
    """The symmetric root R of a positive definite metric M = R R."""
    values, vectors = np.linalg.eigh(metric)
    return (vectors * np.sqrt(values)) @ vectors.T


def each_position(
    patches: Float[np.ndarray, "n d"], matrix: Float[np.ndarray, "z z"]
) -> Float[np.ndarray, "n d"]:
    """Vectors of whole patches (d = positions x z), every position's channels through a matrix."""
    return (patches.reshape(len(patches), -1, len(matrix)) @ matrix).reshape(patches.shape)


def energy(latents: Sequence[Array | np.ndarray], root: Float[np.ndarray, "z z"]) -> float:
    """Mean square of (b, t, h, w, z) arrays by the metric with that root."""
    return float(np.mean([np.mean(np.square(np.asarray(x) @ root)) for x in latents]))
