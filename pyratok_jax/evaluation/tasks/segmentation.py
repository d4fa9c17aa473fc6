"""Zero-shot video segmentation with the tokens of one level."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import resized
from pyratok_jax.evaluation.data.labelled import (
    category_of,
    parse_templates,
    semantic_units,
    spoken,
)
from pyratok_jax.evaluation.data.vis import (
    Track,
    VisData,
    VisVideo,
    decode_mask,
    load_davis,
    load_vis,
    make_track,
    read_frames,
    track_masks,
)
from pyratok_jax.evaluation.models.features import (
    Extractor,
    Truth,
    check_levels,
    chosen_levels,
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
from pyratok_jax.evaluation.vision.masks import (
    FieldSettings,
    KernelSettings,
    log_odds,
    resize_masks,
    similarity_maps,
    solve_field,
    split_instances,
    to_pixels,
    unit_masks,
)
from pyratok_jax.evaluation.vision.vis_scores import MAX_TRACKS, score_tracks
from pyratok_jax.io import Json


@dataclasses.dataclass
class Segmentation(FieldSettings, FeatureTask[VisVideo]):
    """Zero-shot video segmentation (YouTube-VIS 2019/2021, OVIS, DAVIS): cosine of one level's
    tokens (the last; --set level=1 is the first) with the embedding of each semantic unit, a fully
    connected CRF over x, y and t, a mask per unit (--set exclusive=true: a pixel is of one unit
    alone, and all units share a threshold), connected parts as instances. --set contrast=true
    subtracts from each token its mean over all units. Track mAP and J by TrackEval.
    """

    name = "segmentation"
    data_help = (
        "folder with instances.json and JPEGImages/ (YouTube-VIS, OVIS) or with JPEGImages/ and "
        "Annotations/ (DAVIS); or the JSON file, with --set images=FOLDER"
    )
    columns = (("map", "mAP", 2), ("ap50", "AP50", 2), ("ap75", "AP75", 2), ("j", "J", 2))

    images: str = ""
    prompt: str = ""
    templates: str = "a video of {}."
    level: int = 0  # from 1; 0: the last
    side: int = 256
    clip_frames: int = 97
    guided: bool = False
    contrast: bool = False
    exclusive: bool = False
    units: int = 8  # the most in a video; 0: all
    instances: bool = True
    least_area: float = 0.0005
    crf_side: int = 480

    def __post_init__(self) -> None:
        self._data: VisData | None = None
        self._names: dict[int, str] = {}
        self._queries = np.zeros((0, 0), np.float32)

    def window(self) -> int:
        """Frames of the pieces that a video is encoded in."""
        return self.clip_frames

    def check(self) -> None:
        """Read the annotations and the prompt.

        Raises:
            UserError: numbers out of range, or what the readers refuse.
        """
        check_numbers(self, "clip_frames", low=1)
        check_numbers(self, "level", "units", "side", "crf_side", "least_area", low=0)
        check_numbers(self, "place_weight", "colour_weight", "crf_iterations", low=0)
        spreads = (f.name for f in dataclasses.fields(KernelSettings) if "weight" not in f.name)
        check_numbers(self, "temperature", *spreads, low=0, above=True)
        check_numbers(self, "threshold")
        parse_templates(self.templates)
        if len(self._units()) < 2 and self.contrast:
            raise UserError("--set contrast=true compares units: only one is looked for")

    def dataset(self) -> VisData:
        """The data set, read once."""
        if self._data is None:
            path = Path(self.data)
            if path.is_dir() and not (path / "instances.json").exists():
                self._data = load_davis(path)
            else:
                file = path / "instances.json" if path.is_dir() else path
                images = Path(self.images) if self.images else file.parent / "JPEGImages"
                self._data = load_vis(file, images)
        return self._data

    def _units(self) -> dict[int, str]:
        """What is looked for: category number to unit of text."""
        categories = self.dataset().categories
        if not self.prompt:
            return {number: spoken(name) for number, name in categories.items()}
        found = {category_of(unit, categories): unit for unit in semantic_units(self.prompt)}
        units = {number: unit for number, unit in found.items() if number is not None}
        if not units:
            raise UserError(
                f"--set prompt={self.prompt}: none of its units ({', '.join(found.values())}) "
                f"names a category of {self.data}"
            )
        return units

    def protocol(self) -> dict[str, Json]:
        """Settings, and how tracks are made."""
        return self.settings() | {
            "split": Path(self.data).stem,
            "semantic_units": list(self._units().values()),
            "most_tracks": MAX_TRACKS,
            "metric": "TrackEval: TrackMAP (IoU .5:.05:.95) and J, tracks matched per class",
        }

    def items(self) -> list[Item[VisVideo]]:
        """One item per video."""
        return [Item(video.name, video) for video in self.dataset().videos]

    def prepare(self, model: Extractor) -> None:
        """Embed the semantic units."""
        check_levels(model, [self.level - 1] if self.level else None)
        self._names = self._units()
        self._queries = prompt_features(
            model, list(self._names.values()), parse_templates(self.templates)
        )

    def evaluate_item(self, model: Extractor, item: Item[VisVideo]) -> Partial:
        """The predicted tracks of one video."""
        video = item.content
        frames = read_frames(video)
        for track in video.tracks:  # A mask that is none costs this video, not all scores.
            track_masks(track, video.height, video.width)
        small = np.stack([resized(frame, self.side) for frame in frames])
        field = np.stack([resized(frame, self.crf_side) for frame in frames])
        caption = ", ".join(self._names.values()) if self.guided else None
        features = model.video(small, lambda: self._truth(video, small.shape[1:3]), caption)
        (level,) = chosen_levels(
            features, [self.level - 1 if self.level else len(features.levels) - 1]
        )
        maps = similarity_maps(level, self._queries, contrast=self.contrast)
        chosen = np.argsort(-maps.max(axis=(0, 1, 2)), kind="stable")[: self.units or None]
        maps = to_pixels(maps[..., chosen], level, small.shape[1:3])
        if small.shape != field.shape:
            maps = np.stack([_zoom(m, field.shape[1:3]) for m in maps])
        odds = log_odds(maps, self, shared=self.exclusive)
        masks = unit_masks(solve_field(field, odds, self), exclusive=self.exclusive)
        tracks = []
        for position, unit in enumerate(chosen):
            category = list(self._names)[unit]
            tracks += self._tracks(video, category, masks[position], maps[..., position])
        tracks = sorted(tracks, key=lambda track: -track["score"])[:MAX_TRACKS]
        return {"tracks": tracks, "clip": clip_facts(small, features.bits)}

    def _tracks(
        self, video: VisVideo, category: int, mask: np.ndarray, similarity: np.ndarray
    ) -> list[Track]:
        least = max(int(self.least_area * mask.size), 1)
        parts = split_instances(mask, least, MAX_TRACKS)
        if not self.instances and parts:
            parts = [mask]
        size = (video.height, video.width)
        void = [decode_mask(v, *size) if v else None for v in video.void] or [None] * len(mask)
        return [
            make_track(
                resize_masks(part, size), float(similarity[part].mean()), video.id, category, void
            )
            for part in parts
        ]

    def _truth(self, video: VisVideo, size: tuple[int, int]) -> Truth:
        numbers = list(self._names)
        masks = np.zeros((len(numbers), len(video.files), *size), bool)
        for track in video.tracks:
            if int(track["category_id"]) in numbers:
                drawn = track_masks(track, video.height, video.width)
                masks[numbers.index(int(track["category_id"]))] |= resize_masks(drawn, size)
        return Truth(self._queries, masks)

    def _videos(self, partials: Mapping[str, Partial]) -> list[VisVideo]:
        return [video for video in self.dataset().videos if video.name in partials]

    def aggregate(self, partials: Mapping[str, Partial]) -> Metrics:
        """Track mAP and J over the evaluated videos."""
        tracks = [track for partial in partials.values() for track in partial["tracks"]]
        scores = score_tracks(self.dataset(), self._videos(partials), tracks)
        return scores | {"tracks": len(tracks)}

    def pictures(self, partials: Mapping[str, Partial], folder: Path) -> list[Picture]:
        """Ground truth and best tracks over a few frames of the first videos."""
        from pyratok_jax.evaluation.vision.drawing import draw_masks

        pictures = []
        for number, video in enumerate(self._videos(partials)[:6]):
            frames = read_frames(video)
            at = np.linspace(0, len(frames) - 1, 4).astype(int)
            tracks = partials[video.name]["tracks"][:5]
            for what, rows in (("truth", list(video.tracks)[:5]), ("tracks", tracks)):
                masks = [track_masks(row, video.height, video.width)[at] for row in rows]
                names = [self.dataset().categories[int(row["category_id"])] for row in rows]
                shape = (0, len(at), video.height, video.width)
                stack = np.stack(masks) if masks else np.zeros(shape, bool)
                path = folder / f"masks_{number:02d}_{what}.png"
                title = {"truth": "ground truth", "tracks": "best tracks"}[what]
                caption = f"{video.name}, {title}: {', '.join(names) or 'none'}"
                pictures.append(draw_masks(path, frames[at], stack, caption))
        return pictures


def _zoom(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps (h, w, n) at another size, bilinear."""
    import jax

    shape = (*size, maps.shape[-1])
    return np.asarray(jax.image.resize(maps, shape, "linear", antialias=False))
