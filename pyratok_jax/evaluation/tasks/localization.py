"""Zero-shot temporal action localization with the tokens of every frame."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from pyratok_jax.data.video.files import clock_of, iter_span
from pyratok_jax.data.video.timeline import resampled
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import resized
from pyratok_jax.evaluation.data.labelled import parse_templates, spoken
from pyratok_jax.evaluation.data.localization import (
    Annotations,
    find_video,
    load_annotations,
    load_splits,
)
from pyratok_jax.evaluation.models.features import (
    Extractor,
    Truth,
    check_levels,
    check_pooling,
    contrasted,
    frame_similarities,
    parse_levels,
    prompt_features,
)
from pyratok_jax.evaluation.task import (
    BrokenItemError,
    Item,
    Metrics,
    Partial,
    Picture,
    check_numbers,
    parse_range,
)
from pyratok_jax.evaluation.tasks.base import FeatureTask
from pyratok_jax.evaluation.vision.temporal_detection import (
    Detection,
    ProposalSettings,
    mean_average_precision,
    propose,
)
from pyratok_jax.io import Json


@dataclasses.dataclass
class Localization(ProposalSettings, FeatureTask[None]):
    """Zero-shot temporal action localization (THUMOS14, ActivityNet v1.3): level 1 averaged over
    space, cosine with each class name, means over windows of 25 frames, threshold, connected
    runs. Average mAP over IoU thresholds, mean and spread over class splits. Other settings than
    the paper's: pooling and levels ("all", "1,4"); contrast=true subtracts from a frame its mean
    over all classes; stride=N encodes pieces that start every N frames and takes their mean. Inside
    a video no frame is read from the codes of a piece's frame 0.
    """

    name = "localization"
    data_help = (
        "folder with annotations.json (ActivityNet's format), videos/ and, if wanted, splits/ of "
        "class lists; or the JSON file, with --set videos=... and --set splits=..."
    )
    columns = (("average_map", "avg mAP", 2), ("average_map_std", "+-", 2), ("splits", "splits", 0))
    late_settings = frozenset(
        ("splits", "ious", "all_videos", *(f.name for f in dataclasses.fields(ProposalSettings)))
    )

    videos: str = ""
    splits: str = ""
    subset: str = ""
    ious: str = "0.3:0.1:0.7"
    fps: float = 0.0  # 0: the video's own
    side: int = 256
    clip_frames: int = 97
    stride: int = 0  # frames between the starts of pieces; 0: all but one, which two share
    levels: str = "1"
    pooling: str = "mean"
    contrast: bool = False
    all_videos: bool = False
    templates: str = "a video of {}."

    def __post_init__(self) -> None:
        self._annotations: Annotations | None = None
        self._queries = np.zeros((0, 0), np.float32)

    @property
    def file(self) -> Path:
        """The annotation file."""
        path = Path(self.data)
        return path / "annotations.json" if path.is_dir() else path

    def window(self) -> int:
        """Frames of the pieces that a video is encoded in."""
        return self.clip_frames

    def check(self) -> None:
        """Read the annotations, the splits, the levels and the thresholds.

        Raises:
            UserError: numbers out of range, a stride that skips frames, or what the readers refuse.
        """
        check_numbers(self, "clip_frames", "window_frames", "least", "most", low=1)
        check_numbers(self, "gap", "side", "fps", low=0)
        check_numbers(self, "threshold")
        if not 0 <= self.stride <= self.clip_frames:
            raise UserError(
                f"--set stride={self.stride}: expected 0 to clip_frames ({self.clip_frames}), so "
                "that every frame is in a piece"
            )
        parse_levels(self.levels)
        check_pooling(self.pooling)
        if not all(0 < iou <= 1 for iou in parse_range(self.ious, "ious")):
            raise UserError(f"--set ious={self.ious}: expected numbers above 0, up to 1")
        parse_templates(self.templates)
        self._class_splits()
        if self.contrast and len(self.annotations().labels) < 2:
            raise UserError("--set contrast=true compares classes: this set has only one")

    def annotations(self) -> Annotations:
        """The annotation file, read once."""
        if self._annotations is None:
            self._annotations = load_annotations(self.file, self.subset)
        return self._annotations

    def _class_splits(self) -> dict[str, tuple[str, ...]]:
        folder = self.splits or str(self.file.parent / "splits")
        if self.splits or Path(folder).is_dir():
            return load_splits(folder)
        return {"all classes": self.annotations().labels}

    def protocol(self) -> dict[str, Json]:
        """Settings, and what the data holds."""
        found = self.annotations()
        return self.settings() | {
            "split": self.subset or "all",
            "class_splits": list(self._class_splits()),
            "videos_of_a_split": "all" if self.all_videos else "with an instance of its classes",
            "intervals_left_out_as_empty": found.dropped,
        }

    def items(self) -> list[Item[None]]:
        """One item per annotated video."""
        return [Item(video, None) for video in self.annotations().videos]

    def prepare(self, model: Extractor) -> None:
        """Embed the class names."""
        check_levels(model, parse_levels(self.levels))
        names = [spoken(label) for label in self.annotations().labels]
        self._queries = prompt_features(model, names, parse_templates(self.templates))

    def evaluate_item(self, model: Extractor, item: Item[None]) -> Partial:
        """Similarity of every frame with every class."""
        folder = Path(self.videos) if self.videos else self.file.parent / "videos"
        path = find_video(folder, item.id)
        if path is None:
            raise BrokenItemError(f"no video {item.id} in {folder}")
        rate, margin = clock_of(str(path))
        fps = min(self.fps, rate) if self.fps else rate
        pictures = resampled(iter_span(str(path)), fps, margin, 1 / rate)
        levels = parse_levels(self.levels)
        total, seen = np.zeros((0, len(self._queries)), np.float32), np.zeros((0, 1), np.float32)
        bits, size = 0.0, (0, 0)
        for first, clip in self._pieces(pictures):
            span = (first, len(clip), fps)
            features = model.video(clip, functools.partial(self._truth, item.id, *span))
            before = len(total)
            more = ((0, first + len(clip) - before), (0, 0))
            total, seen = np.pad(total, more), np.pad(seen, more)
            # A piece's frame 0 has codes of its own, which show a picture and no motion: inside a
            # film it is read from the piece before.
            start = 1 if first and self.clip_frames > 1 else 0
            similar = frame_similarities(features, self._queries, self.pooling, levels)
            total[first + start :] += similar[start:]
            seen[first + start :] += 1
            new = first + len(clip) - before
            bits += (features.bits or 0.0) * new / len(clip)
            size = clip.shape[1:3]
        facts = {"frames": len(total), "height": size[0], "width": size[1], "bits": bits or None}
        return {"scores": contrasted(total / seen, self.contrast), "fps": fps, "clip": facts}

    def _pieces(self, frames: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """Pieces of the frames, each to be encoded on its own, and which frame it begins with."""
        held: list[np.ndarray] = []
        first = unseen = 0
        # The next piece begins with a frame of this one, which it does not answer for.
        stride = min(self.stride or self.clip_frames, max(self.clip_frames - 1, 1))
        for frame in frames:
            held.append(resized(frame, self.side))
            unseen += 1
            if len(held) == self.clip_frames:
                yield first, np.stack(held)
                del held[:stride]
                first, unseen = first + stride, 0
        if unseen:
            yield first, np.stack(held)

    def _truth(self, video: str, first: int, count: int, fps: float) -> Truth:
        labels = self.annotations().labels
        middle = (first + np.arange(count) + 0.5) / fps
        masks = np.zeros((len(labels), count, 1, 1), bool)
        for instance in self.annotations().videos[video]:
            inside = (instance.start <= middle) & (middle < instance.end)
            masks[labels.index(instance.label), :, 0, 0] |= inside
        return Truth(self._queries, masks)

    def detections(self, partials: Mapping[str, Partial]) -> list[Detection]:
        """Proposals of all classes in all videos."""
        found = []
        for video, partial in partials.items():
            for column, label in enumerate(self.annotations().labels):
                runs = propose(partial["scores"][:, column], self)
                fps = partial["fps"]
                found += [
                    Detection(video, label, run.first / fps, run.end / fps, run.score)
                    for run in runs
                ]
        return found

    def aggregate(self, partials: Mapping[str, Partial]) -> Metrics:
        """mAP per split and threshold; the average over thresholds, its mean and spread."""
        thresholds = parse_range(self.ious, "ious")
        detections = self.detections(partials)
        truth = [x for video in partials for x in self.annotations().videos[video]]
        rows = {}
        for name, labels in self._class_splits().items():
            wanted = set(labels)
            kept = [x for x in truth if x.label in wanted]
            videos = set(partials) if self.all_videos else {x.video for x in kept}
            found = [d for d in detections if d.label in wanted and d.video in videos]
            row = mean_average_precision(kept, found, thresholds)
            if row is not None:
                rows[name] = 100 * row
        averages = [float(row.mean()) for row in rows.values()]
        table = np.array(list(rows.values()))
        return {
            "average_map": float(np.mean(averages)) if averages else None,
            "average_map_std": float(np.std(averages)) if averages else None,
            "splits": len(rows),
            "map_by_iou": {
                f"{iou:g}": float(table[:, i].mean()) for i, iou in enumerate(thresholds)
            }
            if len(rows)
            else {},
            "average_map_by_split": dict(zip(rows, averages, strict=True)),
            "instances": len(truth),
            "detections": len(detections),
        }

    def pictures(self, partials: Mapping[str, Partial], folder: Path) -> list[Picture]:
        """Scores over time with ground truth and proposals, of the first videos."""
        from pyratok_jax.evaluation.vision.drawing import draw_timeline

        return [
            draw_timeline(
                folder / f"timeline_{number:02d}.png",
                video,
                partial,
                self.annotations(),
                self.detections({video: partial}),
                self.window_frames,
            )
            for number, (video, partial) in enumerate(list(partials.items())[:6])
        ]
