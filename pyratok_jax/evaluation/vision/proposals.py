"""From a score per frame to intervals: windows, threshold, connected runs, best first."""

from typing import NamedTuple

import numpy as np


class Run(NamedTuple):
    """Frames first .. end - 1 and their mean score."""

    first: int
    end: int
    score: float


def window_means(scores: np.ndarray, window: int) -> np.ndarray:
    """Mean of the scores (t,) over the window of `window` frames around each frame, stride 1.

    At both ends of the video the window is cut to the frames that exist.
    """
    sums = np.concatenate([[0.0], np.cumsum(scores, dtype=np.float64)])
    centre = np.arange(len(scores))
    low = np.maximum(centre - (window - 1) // 2, 0)
    high = np.minimum(centre + window // 2 + 1, len(scores))
    return (sums[high] - sums[low]) / (high - low)


def connected_runs(above: np.ndarray, gap: int) -> list[tuple[int, int]]:
    """Runs (first, end) of True in (t,); those at most `gap` frames apart are one."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], above.astype(np.int8), [0]])))
    runs: list[tuple[int, int]] = []
    for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if runs and first - runs[-1][1] <= gap:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((first, end))
    return runs


def propose(
    scores: np.ndarray,
    *,
    window: int = 25,
    threshold: float = 0.5,
    relative: bool = True,
    gap: int = 5,
    least: int = 1,
    most: int = 100,
) -> list[Run]:
    """Intervals of one query in one video, best first.

    Args:
        scores: (t,) similarity of each frame.
        window: frames to average over.
        threshold: what an averaged score must exceed.
        relative: the threshold is a share of the video's own range of averaged scores (0 its
            lowest, 1 its highest); False: it is a similarity.
        gap: runs at most this many frames apart are one instance.
        least: shortest instance in frames.
        most: number of instances.
    """
    if not len(scores):
        return []
    means = window_means(scores, window)
    low, high = float(means.min()), float(means.max())
    if relative and high - low < 1e-6:
        return []
    limit = low + threshold * (high - low) if relative else threshold
    runs = [
        Run(first, end, float(means[first:end].mean()))
        for first, end in connected_runs(means > limit, gap)
        if end - first >= least
    ]
    return sorted(runs, key=lambda run: (-run.score, run.first))[:most]
