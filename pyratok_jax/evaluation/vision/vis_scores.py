"""Track mAP and J of masks, computed by TrackEval.

TrackEval reads ground truth with plain and predictions with packed run lengths, skips crowd
tracks, and by default evaluates the area and time ranges of another data set; here the ranges and
the limit of 100 tracks per video are those of the YouTube-VIS benchmark.
"""

import contextlib
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from pyratok_jax.evaluation.data.vis import PackedMask, Track, UnpackedMask, VisData, VisVideo, pack
from pyratok_jax.io import Json

MAX_TRACKS = 100
_REGIONS = "RegionSimilarity"
AREA_RANGES = ((0, 128**2), (128**2, 256**2), (256**2, 1e5**2))


def ground_truth(videos: Sequence[VisVideo], categories: Mapping[int, str]) -> dict[str, Json]:
    """An annotation file of some videos, in the form that TrackEval reads."""
    tracks: list[Track] = []
    for video in videos:
        for track in video.tracks:
            segmentations = [
                _unpacked(pack(s, video.height, video.width)) if s else None
                for s in track["segmentations"]
            ]
            areas = [
                int(coco.area(coco.frPyObjects(s, *s["size"]))) if s else None
                for s in segmentations
            ]
            tracks.append(
                {
                    "id": len(tracks) + 1,
                    "video_id": video.id,
                    "category_id": int(track["category_id"]),
                    "segmentations": segmentations,
                    "areas": areas,
                    "iscrowd": int(track.get("iscrowd", 0)),
                    "height": video.height,
                    "width": video.width,
                }
            )
    return {
        # TrackEval names a video by the folder of its first frame.
        "videos": [
            {"id": v.id, "file_names": [f"{v.id}/{t}" for t in range(len(v.files))]} for v in videos
        ],
        "annotations": tracks,
        "categories": [{"id": k, "name": name} for k, name in categories.items()],
    }


def _unpacked(packed: PackedMask) -> UnpackedMask:
    """Packed run lengths as lists of numbers."""
    flat = coco.decode(packed).T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": packed["size"], "counts": ([0] if flat[0] else []) + counts}


def score_tracks(
    data: VisData, videos: Sequence[VisVideo], predictions: Sequence[Track]
) -> dict[str, float | None]:
    """mAP, AP50, AP75, AR and J (percent) of predicted tracks.

    Without any ground truth every score is None; without any prediction they are 0.

    Args:
        data: gives the categories.
        videos: those that were evaluated.
        predictions: tracks with a score and packed masks.
    """
    counted = [t for v in videos for t in v.tracks if not t.get("iscrowd", 0)]
    names = ("map", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar", "j")
    if not counted:
        return dict.fromkeys(names)
    present = {int(track["category_id"]) for track in counted}
    categories = {k: name for k, name in data.categories.items() if k in present}
    kept = [p for p in predictions if int(p["category_id"]) in present]
    if not kept:
        return dict.fromkeys(names, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        raw = _run(Path(scratch), ground_truth(videos, categories), kept)
    result = _track_map(raw)
    return result | {"j": 100 * _mean_j(raw, categories)}


def _run(folder: Path, truth: dict[str, Json], predictions: Sequence[Track]) -> Any:
    """TrackEval's nested results: class, metric, field."""
    import trackeval

    _write(folder / "gt" / "youtube_vis_x" / "truth.json", truth)
    _write(folder / "tracks" / "youtube_vis_x" / "ours" / "data" / "tracks.json", predictions)
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = trackeval.datasets.YouTubeVIS(
            {
                "GT_FOLDER": f"{folder}/gt/",
                "TRACKERS_FOLDER": f"{folder}/tracks/",
                "OUTPUT_FOLDER": f"{folder}/out/",
                "SPLIT_TO_EVAL": "x",
                "PRINT_CONFIG": False,
            }
        )
        metrics = [
            trackeval.metrics.TrackMAP(
                {
                    "USE_AREA_RANGES": True,
                    "AREA_RANGES": AREA_RANGES,
                    "AREA_RANGE_LABELS": ["area_s", "area_m", "area_l"],
                    "USE_TIME_RANGES": False,
                    "MAX_DETECTIONS": MAX_TRACKS,
                    "PRINT_CONFIG": False,
                }
            ),
            _region_similarity()(),
        ]
        options = {
            "USE_PARALLEL": False,
            "BREAK_ON_ERROR": True,
            "PRINT_RESULTS": False,
            "PRINT_CONFIG": False,
            "OUTPUT_SUMMARY": False,
            "OUTPUT_DETAILED": False,
            "PLOT_CURVES": False,
            "OUTPUT_EMPTY_CLASSES": False,
            "TIME_PROGRESS": False,
            "DISPLAY_LESS_PROGRESS": True,
            "LOG_ON_ERROR": None,
        }
        results, _ = trackeval.Evaluator(options).evaluate([dataset], metrics)
    return results["YouTubeVIS"]["ours"]["COMBINED_SEQ"]


def _region_similarity() -> Any:
    """TrackEval's J without its boundary measure F, defined for videos without ground truth too."""
    import trackeval

    class RegionSimilarity(trackeval.metrics.JAndF):
        def eval_sequence(self, data: Any) -> Any:
            if data["num_gt_ids"] == 0:
                return dict.fromkeys(self.fields, 0.0)
            return super().eval_sequence(data)

        @staticmethod
        def _compute_f(gt: Any, tracks: Any, track: int, truth: int, bound: float) -> np.ndarray:
            return np.zeros(len(gt))

    return RegionSimilarity


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(value))


def _track_map(raw: Any) -> dict[str, float | None]:
    values = raw["cls_comb_cls_av"]["TrackMAP"]

    def percent(array: np.ndarray) -> float | None:
        mean = float(np.mean(array))
        return None if mean < 0 else 100 * mean

    return {
        "map": percent(values["AP_all"]),
        "ap50": percent(values["AP_all"][:1]),
        "ap75": percent(values["AP_all"][5:6]),
        "ap_small": percent(values["AP_area_s"]),
        "ap_medium": percent(values["AP_area_m"]),
        "ap_large": percent(values["AP_area_l"]),
        "ar": percent(values["AR_all"]),
    }


def _mean_j(raw: Any, categories: Mapping[int, str]) -> float:
    """Mean region similarity over all ground truth tracks of all classes."""
    rows = [raw[name][_REGIONS] for name in categories.values() if name in raw]
    weights = np.array([row["num_gt_tracks"] for row in rows], float)
    values = np.array([row["J-Mean"] for row in rows], float)
    return float(np.sum(weights * values) / weights.sum()) if weights.sum() else 0.0
