"""Linear and k-nearest-neighbour probes on frozen tokens."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.labelled import Labelled, load_labelled, read_labelled
from pyratok_jax.evaluation.models.features import (
    Extractor,
    check_levels,
    level_means,
    parse_levels,
)
from pyratok_jax.evaluation.task import Item, Metrics, Partial, check_numbers, clip_facts
from pyratok_jax.evaluation.tasks.base import FeatureTask
from pyratok_jax.evaluation.tasks.classification import label_ranks, whole_clip
from pyratok_jax.io import Json


def nearest_neighbours(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, k: int
) -> np.ndarray:
    """Class scores (n, classes): votes of the k nearest by cosine, weighted exp(cosine / 0.07)."""
    scores = np.zeros((len(test), classes))
    for row, cosine in enumerate(_unit(test) @ _unit(train).T):
        nearest = np.argsort(-cosine, kind="stable")[:k]
        np.add.at(scores[row], labels[nearest], np.exp((cosine[nearest] - 1) / 0.07))
    return scores


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def linear_probe(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, decay: float
) -> np.ndarray:
    """Class scores (n, classes) of a softmax regression on standardised features.

    Args:
        train: (m, d) features.
        labels: (m,) class numbers.
        test: (n, d) features.
        classes: number of classes.
        decay: weight of half the squared norm of the weights.
    """
    mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    x = np.concatenate([(train - mean) / spread, np.ones((len(train), 1))], axis=1)
    shape = (x.shape[1], classes)
    targets = np.eye(classes)[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        logs = log_softmax(x @ weights, axis=1)
        kept = weights.copy()
        kept[-1] = 0.0  # The bias is free.
        value = -np.mean(np.sum(targets * logs, axis=1)) + 0.5 * decay * np.sum(kept**2)
        gradient = x.T @ (np.exp(logs) - targets) / len(x) + decay * kept
        return float(value), gradient.ravel()

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B")
    y = np.concatenate([(test - mean) / spread, np.ones((len(test), 1))], axis=1)
    return y @ found.x.reshape(shape)


@dataclasses.dataclass
class Probes(FeatureTask[Labelled]):
    """Linear and k-nearest-neighbour probes: the pooled features of all levels, frozen, with any
    labelled folders for training and testing. Top-1 and top-5.
    """

    name = "probes"
    data_help = "folder with train/ and test/, each with a folder of videos per class"
    columns = (
        ("linear_top1", "linear top-1", 2),
        ("linear_top5", "linear top-5", 2),
        ("knn_top1", "k-NN top-1", 2),
    )

    levels: str = "all"
    grid: int = 2
    frames: int = 17
    side: int = 256
    late_settings = frozenset(("k", "decay"))  # Of the probes; those above are of the features.
    k: int = 20
    decay: float = 0.001

    def __post_init__(self) -> None:
        self._rows: dict[str, list[Labelled]] = {}

    def window(self) -> int:
        """A clip is encoded as a whole."""
        return self.frames

    def check(self) -> None:
        """Read the levels and both lists.

        Raises:
            UserError: numbers out of range, or a label of test/ that train/ does not have.
        """
        check_numbers(self, "k", "grid", "frames", low=1)
        check_numbers(self, "side", "decay", low=0)
        parse_levels(self.levels)
        train, test = ({row.label for row in self.part(p)} for p in ("train", "test"))
        if not test <= train:
            raise UserError(
                f"{self.data}: the label {sorted(test - train)[0]} is in test/ but not in train/"
            )

    def part(self, part: str) -> list[Labelled]:
        """The videos of `train` or `test`."""
        if part not in self._rows:
            self._rows[part] = load_labelled(Path(self.data) / part)
        return self._rows[part]

    def _labels(self) -> list[str]:
        return sorted({row.label for row in self.part("train")})

    def protocol(self) -> dict[str, Json]:
        """Settings, and sizes."""
        sizes = {f"{part}_videos": len(self.part(part)) for part in ("train", "test")}
        return self.settings() | {"split": "test", "classes": len(self._labels())} | sizes

    def items(self) -> list[Item[Labelled]]:
        """Training and test videos in turn, so that a limit takes of both."""
        parts = [
            [Item(f"{part}/{row.name}", row) for row in self.part(part)]
            for part in ("train", "test")
        ]
        ranked = [
            ((i + 0.5) / len(part), number, item)
            for number, part in enumerate(parts)
            for i, item in enumerate(part)
        ]
        return [item for _, _, item in sorted(ranked, key=lambda entry: entry[:2])]

    def prepare(self, model: Extractor) -> None:
        """Refuse levels that the features do not have."""
        check_levels(model, parse_levels(self.levels))

    def evaluate_item(self, model: Extractor, item: Item[Labelled]) -> Partial:
        """The pooled features of one video."""
        row = item.content
        clip = read_labelled(row, self.frames, self.side)
        label = self._labels().index(row.label)
        # The oracle alone asks for the labels' embeddings: others need no language model.
        truth = lambda: whole_clip(model.texts([row.label])[0], len(clip))  # noqa: E731
        features = model.video(clip, truth)
        return {
            "features": level_means(features, parse_levels(self.levels), self.grid).ravel(),
            "label": label,
            "clip": clip_facts(clip, features.bits),
        }

    def aggregate(self, partials: Mapping[str, Partial]) -> Metrics:
        """Train both probes and score them on the test videos, in percent."""
        parts = {}
        for part in ("train", "test"):
            chosen = [p for name, p in partials.items() if name.startswith(f"{part}/")]
            if not chosen:
                return {"linear_top1": None, "knn_top1": None, "missing": part}
            features = np.stack([p["features"] for p in chosen]).astype(np.float64)
            parts[part] = features, np.array([p["label"] for p in chosen])
        (train, labels), (test, truth) = parts["train"], parts["test"]
        classes = len(self._labels())
        k = min(self.k, len(train))
        linear = label_ranks(linear_probe(train, labels, test, classes, self.decay), truth)
        near = label_ranks(nearest_neighbours(train, labels, test, classes, k), truth)
        return {
            "linear_top1": 100 * float((linear < 1).mean()),
            "linear_top5": 100 * float((linear < 5).mean()),
            "knn_top1": 100 * float((near < 1).mean()),
            "knn_top5": 100 * float((near < 5).mean()),
            "k_used": k,
            "chance_top1": 100 / classes,
            "train_videos": len(train),
            "test_videos": len(test),
        }
