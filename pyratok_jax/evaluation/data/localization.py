"""Annotations of temporal action localization: ActivityNet's and THUMOS14's JSON, and splits."""

import dataclasses
import re
from pathlib import Path

from pydantic import FiniteFloat

from pyratok_jax.data.video.files import VIDEO_SUFFIXES
from pyratok_jax.errors import UserError, short
from pyratok_jax.evaluation.vision.temporal_detection import Instance
from pyratok_jax.io import Json
from pyratok_jax.io.documents import checked, read_json, read_lines, with_suffix_of


@dataclasses.dataclass(frozen=True)
class Annotations:
    """Videos in the file's order with their instances.

    Attributes:
        videos: instances of each video; a video may have none.
        labels: all labels that occur, sorted.
        dropped: intervals that are not longer than zero seconds, left out.
    """

    videos: dict[str, tuple[Instance, ...]]
    labels: tuple[str, ...]
    dropped: int


_ADVICE = "expected annotations with a segment [start, end] and a label"


@dataclasses.dataclass(frozen=True)
class _Annotation:
    """An interval as the file has it, in seconds."""

    segment: tuple[FiniteFloat, FiniteFloat]
    label: str | int | float


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A video as the file has it."""

    subset: str | None = None
    annotations: tuple[_Annotation, ...] | None = None


@dataclasses.dataclass(frozen=True)
class _File:
    database: dict[str, Json]


def load_annotations(path: Path, subset: str = "") -> Annotations:
    """Read {"database": {VIDEO: {"subset", "annotations": [{"segment", "label"}]}}}.

    Args:
        path: the JSON file.
        subset: only videos of it (`test`, `validation`); empty: all.

    Raises:
        UserError: missing, malformed, no video of that subset, or no interval in all of them.
    """
    form = 'it is not of the form {"database": {VIDEO: ...}}'
    entries = read_json(path, _File, advice=form).database.items()
    videos, dropped = {}, 0
    for video, entry in entries:
        found: _Entry = checked(entry, _Entry, f"{path}, video {short(video)}", _ADVICE)
        if subset and str(found.subset).lower() != subset.lower():
            continue
        instances = [
            Instance(video, str(row.label), *row.segment) for row in found.annotations or ()
        ]
        kept = tuple(x for x in instances if x.end > x.start)
        dropped += len(instances) - len(kept)
        videos[video] = kept
    if not videos:
        known = sorted({str(e.get("subset")) for _, e in entries if isinstance(e, dict)})
        raise UserError(f"{path} has no video of subset {subset}; it has {short(', '.join(known))}")
    labels = sorted({x.label for instances in videos.values() for x in instances})
    if not labels:
        raise UserError(
            f"{path} names no interval in its {len(videos)} videos, so that there is nothing to "
            "find; expected annotations with a segment [start, end] and a label"
        )
    return Annotations(videos, tuple(labels), dropped)


def load_splits(folder: str) -> dict[str, tuple[str, ...]]:
    """Class names of each split: every `*.list` of a folder (or one file), a name per line.

    Raises:
        UserError: none is there.
    """
    path = Path(folder)
    inside = [file for file in path.glob("*") if file.suffix.lower() == ".list"]
    files = sorted(inside, key=_natural) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UserError(f"{folder} holds no split; expected files such as split_0.list")
    splits = {}
    for file in files:
        splits[file.stem] = tuple(read_lines(file))
    return splits


def _natural(path: Path) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def find_video(folder: Path, name: str) -> Path | None:
    """The file of a video: NAME or v_NAME with any suffix that is known to be video."""
    for stem in (name, f"v_{name}"):
        found = with_suffix_of(folder, stem, ("", *VIDEO_SUFFIXES))
        if found is not None:
            return found
    return None
