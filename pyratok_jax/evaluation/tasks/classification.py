"""Zero-shot classification of clips by the names of classes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pyratok_jax.evaluation.data.clips import sample_frames
from pyratok_jax.evaluation.data.labelled import (
    Labelled,
    load_classes,
    load_labelled,
    parse_templates,
    read_labelled,
    spoken,
)
from pyratok_jax.evaluation.models.features import (
    Extractor,
    Features,
    Truth,
    check_levels,
    check_pooling,
    parse_levels,
    pooled_similarity,
    prompt_features,
)
from pyratok_jax.evaluation.task import (
    Item,
    Metrics,
    Partial,
    Picture,
    check_numbers,
    clip_facts,
)
from pyratok_jax.evaluation.tasks.base import FeatureTask
from pyratok_jax.io import Json

_TEMPLATES = "a video of {}.|a video of a person doing {}.|{}."


@dataclasses.dataclass
class Classification(FeatureTask[Labelled]):
    """Zero-shot classification (Kinetics-400/600/700, UCF-101): cosine between the pooled features
    of all levels and class names in prompt templates. Top-1 and top-5.
    """

    name = "classification"
    data_help = (
        "folder of videos, one folder per class; with --set table=FILE (UCF-101's testlist, "
        "Kinetics' CSV or label,path) and --set classes=FILE (one name per line)"
    )
    columns = (("top1", "top-1", 2), ("top5", "top-5", 2))

    table: str = ""
    classes: str = ""
    templates: str = _TEMPLATES
    levels: str = "all"
    pooling: str = "mean"
    frames: int = 17
    side: int = 256

    def __post_init__(self) -> None:
        self._rows: list[Labelled] = []
        self._classes: list[str] = []
        self._queries = np.zeros((0, 0), np.float32)

    def window(self) -> int:
        """A clip is encoded as a whole."""
        return self.frames

    def check(self) -> None:
        """Refuse numbers out of range; read the labels, the templates and the levels."""
        check_numbers(self, "frames", low=1)
        check_numbers(self, "side", low=0)
        parse_templates(self.templates)
        parse_levels(self.levels)
        check_pooling(self.pooling)
        self.class_names()

    def rows(self) -> list[Labelled]:
        """All labelled videos, read once."""
        if not self._rows:
            self._rows = load_labelled(Path(self.data), self.table)
        return self._rows

    def class_names(self) -> list[str]:
        """Names of the classes, read once."""
        if not self._classes:
            self._classes = load_classes(self.classes, self.rows())
        return self._classes

    def protocol(self) -> dict[str, Json]:
        """Settings, and the number of classes."""
        return self.settings() | {
            "split": Path(self.table).stem if self.table else Path(self.data).name,
            "number_of_classes": len(self.class_names()),
            "sampling": "middles of equal parts of the clip, one view, uncropped",
        }

    def items(self) -> list[Item[Labelled]]:
        """One item per video."""
        return [Item(row.name, row) for row in self.rows()]

    def prepare(self, model: Extractor) -> None:
        """Embed the class names."""
        check_levels(model, parse_levels(self.levels))
        names = [spoken(name) for name in self.class_names()]
        self._queries = prompt_features(model, names, parse_templates(self.templates))

    def evaluate_item(self, model: Extractor, item: Item[Labelled]) -> Partial:
        """Cosine of one clip with every class."""
        row = item.content
        clip = read_labelled(row, self.frames, self.side)
        label = self.class_names().index(row.label)
        features = model.video(clip, lambda: whole_clip(self._queries[label], len(clip)))
        return {
            "scores": self._scores(features),
            "label": label,
            "clip": clip_facts(clip, features.bits),
        }

    def _scores(self, features: Features) -> np.ndarray:
        """Similarity of a clip with every class, float32."""
        return pooled_similarity(features, self._queries, self.pooling, parse_levels(self.levels))

    def aggregate(self, partials: Mapping[str, Partial]) -> Metrics:
        """Top-1 and top-5 in percent, chance, and the mean of the classes' top-1."""
        scores = np.stack([p["scores"] for p in partials.values()])
        labels = np.array([p["label"] for p in partials.values()])
        ranks = label_ranks(scores, labels)
        by_class = [float((ranks[labels == c] < 1).mean()) for c in np.unique(labels)]
        return {
            "top1": 100 * float((ranks < 1).mean()),
            "top5": 100 * float((ranks < 5).mean()),
            "mean_class_top1": 100 * float(np.mean(by_class)),
            "chance_top1": 100 / scores.shape[1],
            "videos": len(labels),
        }

    def pictures(self, partials: Mapping[str, Partial], folder: Path) -> list[Picture]:
        """The first videos with their label and the likeliest classes."""
        from pyratok_jax.evaluation.vision.drawing import draw_masks

        names, pictures = self.class_names(), []
        rows = {row.name: row for row in self.rows()}
        for number, (name, partial) in enumerate(list(partials.items())[:8]):
            best = np.argsort(-partial["scores"], kind="stable")[:3]
            said = ", ".join(f"{names[i]} {partial['scores'][i]:.3f}" for i in best)
            clip = sample_frames(str(rows[name].path), 4, 160)
            caption = f"{rows[name].label}: {said}"
            path = folder / f"clip_{number:02d}.png"
            pictures.append(draw_masks(path, clip, np.zeros((0, *clip.shape[:3]), bool), caption))
        return pictures


def whole_clip(vector: np.ndarray, frames: int) -> Truth:
    """One thing, everywhere in all frames."""
    return Truth(vector[None], np.ones((1, frames, 1, 1), bool))


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes score above each clip's label; of those of equal score half count.

    At the top a label is so still the first (rank below 1) beside one class of equal score, but not
    beside two. Scores that tell nothing, as they are all equal or one is NaN, give an infinite
    rank: a model that gives all classes the same score is never right.
    """
    own = scores[np.arange(len(labels)), labels][:, None]
    above = (scores > own).sum(axis=1)
    equal = (scores == own).sum(axis=1) - 1
    silent = np.isnan(scores).any(axis=1) | ((equal == scores.shape[1] - 1) & (equal > 0))
    return np.where(silent, np.inf, above + equal / 2)
