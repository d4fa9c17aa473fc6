"""Temporal detection: intervals proposed from a score per frame, and their mean average precision.

Proposals are connected runs of frames whose windowed mean score exceeds a threshold. Mean average
precision is that of ActivityNet and THUMOS14: per class, detections are taken by falling score;
each is matched to the ground truth instance of its video that it overlaps most among those still
free, when their temporal intersection over union reaches the threshold, and is a false positive
otherwise. Average precision is the area under the precision-recall curve after precision has been
made non-increasing. Classes without any ground truth do not count.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Instance(NamedTuple):
    """A ground truth interval of seconds."""

    video: str
    label: str
    start: float
    end: float


class Detection(NamedTuple):
    """A predicted interval of seconds."""

    video: str
    label: str
    start: float
    end: float
    score: float


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


@dataclasses.dataclass
class ProposalSettings:
    """How intervals are proposed.

    Attributes:
        window_frames: frames to average over.
        threshold: what an averaged score must exceed.
        relative: the threshold is a share of the video's own range of averaged scores (0 its
            lowest, 1 its highest); False: it is a similarity.
        gap: runs at most this many frames apart are one instance.
        least: shortest instance in frames.
        most: number of instances.
    """

    window_frames: int = 25
    threshold: float = 0.5
    relative: bool = True
    gap: int = 5
    least: int = 1
    most: int = 100


def propose(scores: np.ndarray, settings: ProposalSettings) -> list[Run]:
    """Intervals of one query in one video, best first; `scores` (t,) are per frame."""
    s = settings
    if not len(scores):
        return []
    means = window_means(scores, s.window_frames)
    low, high = float(means.min()), float(means.max())
    if s.relative and high - low < 1e-6:
        return []
    limit = low + s.threshold * (high - low) if s.relative else s.threshold
    runs = [
        Run(first, end, float(means[first:end].mean()))
        for first, end in connected_runs(means > limit, s.gap)
        if end - first >= s.least
    ]
    return sorted(runs, key=lambda run: (-run.score, run.first))[: s.most]


def temporal_iou(start: float, end: float, segments: np.ndarray) -> np.ndarray:
    """Intersection over union of one interval with n others (n, 2); 0 where both are empty."""
    low, high = np.maximum(start, segments[:, 0]), np.minimum(end, segments[:, 1])
    common = np.maximum(high - low, 0.0)
    union = (end - start) + (segments[:, 1] - segments[:, 0]) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def interpolated_precision(hits: np.ndarray, positives: int) -> float:
    """Average precision of detections in falling order of score.

    Args:
        hits: (n,) bool, whether each is a true positive.
        positives: number of ground truth instances, at least 1.
    """
    found = np.cumsum(hits)
    recall = np.concatenate([[0.0], found / positives])
    precision = found / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope))


def average_precisions(
    truth: Sequence[Instance], detections: Sequence[Detection], thresholds: Sequence[float]
) -> np.ndarray:
    """Average precision of one class at each threshold; `truth` is not empty."""
    segments = defaultdict(list)
    for instance in truth:
        segments[instance.video].append((instance.start, instance.end))
    table = {video: np.array(pairs, float) for video, pairs in segments.items()}
    free = {video: np.ones((len(thresholds), len(x)), bool) for video, x in table.items()}
    # Detections of equal score keep their order.
    ordered = sorted(detections, key=lambda detection: -detection.score)
    hits = np.zeros((len(thresholds), len(ordered)), bool)
    for column, detection in enumerate(ordered):
        if detection.video not in table:
            continue
        overlap = temporal_iou(detection.start, detection.end, table[detection.video])
        for row, threshold in enumerate(thresholds):
            open_overlap = np.where(free[detection.video][row], overlap, -1.0)
            best = int(np.argmax(open_overlap))
            if open_overlap[best] >= threshold:
                hits[row, column] = True
                free[detection.video][row, best] = False
    return np.array([interpolated_precision(row, len(truth)) for row in hits])


def mean_average_precision(
    truth: Iterable[Instance], detections: Iterable[Detection], thresholds: Sequence[float]
) -> np.ndarray | None:
    """Mean over classes of average precision, 0 .. 1, at each threshold.

    Returns:
        (thresholds,) or None where there is no ground truth at all.
    """
    instances, found = defaultdict(list), defaultdict(list)
    for instance in truth:
        instances[instance.label].append(instance)
    for detection in detections:
        found[detection.label].append(detection)
    if not instances:
        return None
    rows = [average_precisions(t, found[label], thresholds) for label, t in instances.items()]
    return np.mean(rows, axis=0)
