"""Average precision of intervals: by hand, and against a slow implementation written apart."""

import numpy as np
import pytest

from pyratok_jax.evaluation.vision.temporal_detection import (
    Detection,
    Instance,
    mean_average_precision,
    temporal_iou,
)


def truth(*segments, video="v", label="a"):
    return [Instance(video, label, *segment) for segment in segments]


def found(*segments, video="v", label="a"):
    return [Detection(video, label, *segment) for segment in segments]


def slow_map(instances, detections, threshold):
    """The definition, step by step, with loops and no shared code."""
    values = []
    for label in sorted({x.label for x in instances}):
        positives = [x for x in instances if x.label == label]
        ranked = sorted((d for d in detections if d.label == label), key=lambda d: -d.score)
        taken, outcome = set(), []
        for d in ranked:
            best, best_iou = None, threshold
            for i, x in enumerate(positives):
                if x.video != d.video or i in taken:
                    continue
                common = max(0.0, min(d.end, x.end) - max(d.start, x.start))
                union = (d.end - d.start) + (x.end - x.start) - common
                better = common / union > best_iou or (best is None and common / union == best_iou)
                if better:
                    best, best_iou = i, common / union
            outcome.append(best is not None)
            taken.add(best)
        # Area under the curve: for each true positive, the best precision from there on.
        area = 0.0
        for rank, hit in enumerate(outcome):
            if hit:
                later = [sum(outcome[: r + 1]) / (r + 1) for r in range(rank, len(outcome))]
                area += max(later) / len(positives)
        values.append(area)
    return sum(values) / len(values)


def test_temporal_iou_by_hand():
    others = np.array([[0.0, 10.0], [5.0, 15.0], [20.0, 30.0], [2.0, 4.0]])
    np.testing.assert_allclose(temporal_iou(0, 10, others), [1, 5 / 15, 0, 2 / 10])


@pytest.mark.parametrize(
    ("instances", "detections", "expected"),
    [
        (truth((0, 10)), found((0, 10, 0.9)), 1.0),
        (truth((0, 10)), [], 0.0),
        (truth((0, 10)), found((20, 30, 0.9)), 0.0),
        # A second hit on the same instance is false: precision 1, then 1/2.
        (truth((0, 10)), found((0, 10, 0.9), (0, 9, 0.8)), 1.0),
        # The duplicate comes before the second instance: precision 1 at recall 1/2, 2/3 at 1.
        (truth((0, 10), (20, 30)), found((0, 10, 0.9), (0, 10, 0.8), (20, 30, 0.7)), 0.5 + 1 / 3),
        # A false positive first: precision 0, 1/2, 2/3, made monotone: 2/3 twice.
        (truth((0, 10), (20, 30)), found((50, 60, 0.9), (0, 10, 0.8), (20, 30, 0.7)), 2 / 3),
        # Half found.
        (truth((0, 10), (20, 30)), found((0, 10, 0.9)), 0.5),
        # Shifted by a fifth: IoU 8/12 = 0.67 passes 0.5.
        (truth((0, 10)), found((2, 12, 0.9)), 1.0),
        # The wrong video, and the wrong class.
        (truth((0, 10)), found((0, 10, 0.9), video="w"), 0.0),
        (truth((0, 10)), found((0, 10, 0.9), label="b"), 0.0),
    ],
)
def test_by_hand_at_iou_half(instances, detections, expected):
    value = mean_average_precision(instances, detections, [0.5])
    assert value == pytest.approx([expected])


def test_threshold_is_reached_exactly():
    values = mean_average_precision(truth((0, 10)), found((2, 12, 1.0)), [8 / 12, 0.67])
    assert values.tolist() == [1.0, 0.0]


def test_a_taken_instance_passes_the_match_on_to_the_next_best():
    instances = truth((0, 10), (1, 11))
    detections = found((0, 10, 0.9), (0, 10, 0.8))
    assert mean_average_precision(instances, detections, [0.5]).tolist() == [1.0]


def test_classes_without_truth_do_not_count_and_no_truth_is_none():
    detections = found((0, 10, 0.9)) + found((0, 10, 0.9), label="b")
    assert mean_average_precision(truth((0, 10)), detections, [0.5]).tolist() == [1.0]
    assert mean_average_precision([], detections, [0.5]) is None


def test_equal_to_the_slow_implementation(rng):
    for _ in range(60):
        instances, detections = [], []
        for kind, count in (("truth", rng.integers(1, 25)), ("found", rng.integers(0, 60))):
            for _ in range(count):
                start, length = rng.uniform(0, 60), rng.uniform(1, 25)
                where = (f"v{rng.integers(4)}", f"c{rng.integers(3)}", start, start + length)
                if kind == "truth":
                    instances.append(Instance(*where))
                else:
                    detections.append(Detection(*where, float(rng.random())))
        thresholds = [0.1, 0.3, 0.5, 0.7]
        ours = mean_average_precision(instances, detections, thresholds)
        slow = [slow_map(instances, detections, t) for t in thresholds]
        np.testing.assert_allclose(ours, slow, atol=1e-12)
