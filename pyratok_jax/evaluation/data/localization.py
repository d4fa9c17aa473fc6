"""Annotations of temporal action localization: ActivityNet's and THUMOS14's JSON, and splits."""

import dataclasses
import math
import re
from pathlib import Path

from pyratok_jax.data.video.files import VIDEO_SUFFIXES
from pyratok_jax.errors import UserError, quoted, short
from pyratok_jax.evaluation.vision.temporal_detection import Instance
from pyratok_jax.io import Json
from pyratok_jax.io.documents import WRONG_VALUE, read_json, read_lines, with_suffix_of


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


def load_annotations(path: Path, subset: str = "") -> Annotations:
    """Read {"database": {VIDEO: {"subset", "annotations": [{"segment", "label"}]}}}.

    Args:
        path: the JSON file.
        subset: only videos of it (`test`, `validation`); empty: all.

    Raises:
        UserError: missing, malformed, no video of that subset, or no interval in all of them.
    """
    try:
        database = read_json(path)["database"]
        entries = database.items()
    except WRONG_VALUE as error:
        raise UserError(f'{path} is not of the form {{"database": {{VIDEO: ...}}}}') from error
    videos, dropped = {}, 0
    for video, entry in entries:
        rows = entry.get("annotations") or [] if isinstance(entry, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{path}, video {short(video)}: expected an object with annotations")
        if subset and str(entry.get("subset", "")).lower() != subset.lower():
            continue
        instances = [_instance(path, video, row) for row in rows]
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


def _instance(path: Path, video: str, row: Json) -> Instance:
    try:
        start, end = (float(x) for x in row["segment"])
        if not (math.isfinite(start) and math.isfinite(end)):
            raise ValueError("not finite")
        return Instance(video, str(row["label"]), start, end)
    except WRONG_VALUE as error:
        raise UserError(
            f"{path}, video {short(video)}: an annotation without a segment [start, end] and a "
            f"label: {quoted(row)}"
        ) from error


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
