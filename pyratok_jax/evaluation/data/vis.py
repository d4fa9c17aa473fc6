"""Segmentation data in the formats of YouTube-VIS 2019/2021, OVIS and DAVIS, and masks as RLE."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import numpy as np
from pycocotools import mask as coco
from pydantic import Field

from pyratok_jax.data.video.files import BrokenVideoError, read_image
from pyratok_jax.data.video.pictures import open_picture
from pyratok_jax.errors import UserError, short
from pyratok_jax.evaluation.task import BrokenItemError
from pyratok_jax.io import Json
from pyratok_jax.io.documents import checked, read_json

_IMAGES = (".jpg", ".jpeg", ".png")
_VOID = 255


class PackedMask(TypedDict):
    """A mask as packed run lengths (COCO): size [height, width], and the counts as text."""

    size: list[int]
    counts: str


class UnpackedMask(TypedDict):
    """A mask as run lengths, column by column, beginning with those outside of it."""

    size: list[int]
    counts: list[int]


# A mask in any published format; polygons are lists of x, y, x, y, ... in pixels.
Segmentation = PackedMask | UnpackedMask | list[list[float]]


class Track(TypedDict):
    """One object in one video: a mask per frame, None where it is not seen.

    Ground truth has `iscrowd` (1: it does not count); predictions have `score`.
    """

    video_id: int
    category_id: int
    segmentations: Sequence[Segmentation | None]
    id: NotRequired[int]
    areas: NotRequired[list[int | None]]
    iscrowd: NotRequired[int]
    height: NotRequired[int]
    width: NotRequired[int]
    score: NotRequired[float]


_Number = Annotated[int, Field(strict=True)]
_Side = Annotated[int, Field(strict=True, ge=1, le=1 << 15)]
_Run = Annotated[int, Field(strict=True, ge=0, lt=1 << 32)]
_Place = Annotated[float, Field(strict=True, ge=-1e6, le=1e6)]
_Polygon = Annotated[list[_Place], Field(min_length=6)]


@dataclasses.dataclass(frozen=True)
class _MaskRow:
    """`PackedMask` or `UnpackedMask` in a file."""

    size: Annotated[list[_Side], Field(min_length=2, max_length=2)]
    counts: str | list[_Run]


@dataclasses.dataclass(frozen=True)
class _TrackRow:
    """`Track` in a file."""

    video_id: _Number
    category_id: _Number
    segmentations: list[_MaskRow | list[_Polygon] | None]
    id: _Number | None = None
    areas: list[float | None] | None = None
    iscrowd: Annotated[int, Field(ge=0, le=1)] = 0


@dataclasses.dataclass(frozen=True)
class _VideoRow:
    """A video in a file."""

    id: _Number
    file_names: list[str]
    height: _Side
    width: _Side


@dataclasses.dataclass(frozen=True)
class _Category:
    """A category in a file."""

    id: _Number
    name: str


@dataclasses.dataclass(frozen=True)
class _Content:
    """A file of YouTube-VIS or OVIS; a test set has no annotations."""

    videos: list[_VideoRow]
    categories: list[_Category]
    annotations: list[_TrackRow] | None


@dataclasses.dataclass(frozen=True)
class VisVideo:
    """One video: its frames' files, and what it shows.

    Attributes:
        id: number in the annotations.
        name: stable name.
        files: frames in order.
        tracks: ground truth.
        void: masks per frame of pixels that do not count (DAVIS), or nothing.
    """

    id: int
    name: str
    files: tuple[Path, ...]
    height: int
    width: int
    tracks: tuple[Track, ...]
    void: tuple[PackedMask | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class VisData:
    """A data set: videos, and the categories by id."""

    videos: tuple[VisVideo, ...]
    categories: dict[int, str]


def load_vis(path: Path, images: Path) -> VisData:
    """Read an annotation file of YouTube-VIS or OVIS.

    Args:
        path: `instances.json` with videos, annotations and categories.
        images: the folder that the files' names are relative to.

    Raises:
        UserError: missing, malformed or without annotations.
    """
    content = read_json(path)
    checked(content, _Content, str(path), "expected YouTube-VIS's videos, annotations, categories")
    categories: dict[int, str] = {c["id"]: c["name"] for c in content["categories"]}
    tracks: dict[int, list[Track]] = {v["id"]: [] for v in content["videos"]}
    if content["annotations"] is None:
        raise UserError(f"{path} has no annotations (a test set?); use a split with ground truth")
    for number, track in enumerate(content["annotations"]):
        owner = tracks.get(track["video_id"])
        if track["category_id"] not in categories or owner is None:
            raise UserError(f"{path}, annotation {number}: its video or category does not exist")
        owner.append(track)
    videos = [_video(path, images, v, tracks[v["id"]]) for v in content["videos"]]
    return VisData(tuple(videos), categories)


def _video(path: Path, images: Path, row: Json, tracks: list[Track]) -> VisVideo:
    files = tuple(images / name for name in row["file_names"])
    height, width = row["height"], row["width"]
    for track in tracks:
        if len(track["segmentations"]) != len(files):
            raise UserError(
                f"{path}, annotation {track.get('id')}: {len(track['segmentations'])} masks for "
                f"{len(files)} frames"
            )
        _check_masks(path, track, height, width)
    name = Path(row["file_names"][0]).parent.name if files else str(row["id"])
    return VisVideo(row["id"], f"{row['id']}:{name}", files, height, width, tuple(tracks))


def _check_masks(path: Path, track: Track, height: int, width: int) -> None:
    """Refuse masks that cannot be read now, and not when all videos have been evaluated."""
    for frame, segmentation in enumerate(track["segmentations"]):
        try:
            if segmentation:
                pack(segmentation, height, width)
        except Exception as error:  # pycocotools has no type of its own.
            raise UserError(
                f"{path}, annotation {track.get('id')}, frame {frame}: no mask of {width}x{height} "
                f"pixels ({short(str(error))})"
            ) from error


def load_davis(root: Path) -> VisData:
    """Read a folder with JPEGImages/ and Annotations/ (with or without `480p` below them).

    `objects.json`, {VIDEO: {OBJECT: NAME}}, gives the objects' names; without it each object is
    called by its video's name ("dance-twirl" is "dance twirl").

    Raises:
        UserError: the folders are not there.
    """
    images, labels = _davis_folder(root, "JPEGImages"), _davis_folder(root, "Annotations")
    names = {}
    if (root / "objects.json").exists():
        names = read_json(root / "objects.json", dict[str, dict[str, str]])
    videos: list[VisVideo] = []
    ids: dict[str, int] = {}
    for number, folder in enumerate(sorted(p for p in labels.iterdir() if p.is_dir()), start=1):
        files = sorted(f for f in (images / folder.name).glob("*") if f.suffix.lower() in _IMAGES)
        maps = _label_maps(folder)
        found = sorted(set(np.unique(maps).tolist()) - {0, _VOID})
        tracks: list[Track] = []
        for value in found:
            name = names.get(folder.name, {}).get(str(value)) or folder.name.replace("-", " ")
            category = ids.setdefault(name, len(ids) + 1)
            tracks.append(davis_track(maps == value, category, number, len(tracks) + 1))
        height, width = maps.shape[1:]
        void = tuple(encode_mask(m == _VOID) if (m == _VOID).any() else None for m in maps)
        row = VisVideo(number, folder.name, tuple(files), height, width, tuple(tracks), void)
        videos.append(row)
    if not videos:
        raise UserError(f"{labels} holds no folder of masks")
    return VisData(tuple(videos), {number: name for name, number in ids.items()})


def _davis_folder(root: Path, name: str) -> Path:
    folder = root / name
    if not folder.is_dir():
        raise UserError(f"{root} holds neither instances.json nor {name}/")
    return folder / "480p" if (folder / "480p").is_dir() else folder


def _label_maps(folder: Path) -> np.ndarray:
    """Object numbers (t, h, w); 255 is void."""
    maps = []
    for file in sorted(f for f in folder.iterdir() if f.suffix.lower() == ".png"):
        with open_picture(file) as image:
            maps.append(np.asarray(image if image.mode in ("P", "L") else image.convert("L")))
    if not maps or len({m.shape for m in maps}) != 1:
        raise UserError(f"{folder}: expected PNG masks of one size, one per frame")
    return np.stack(maps)


def davis_track(masks: np.ndarray, category: int, video: int, number: int) -> Track:
    """Masks (t, h, w) of one object as an annotation."""
    areas = masks.sum(axis=(1, 2)).tolist()
    return {
        "id": video * 1000 + number,
        "video_id": video,
        "category_id": category,
        "segmentations": [encode_mask(mask) if mask.any() else None for mask in masks],
        "areas": [area or None for area in areas],
        "iscrowd": 0,
        "height": masks.shape[1],
        "width": masks.shape[2],
    }


def track_masks(track: Track, height: int, width: int) -> np.ndarray:
    """The masks of a track, bool (t, height, width)."""
    empty = np.zeros((height, width), bool)
    masks = [decode_mask(s, height, width) if s else empty for s in track["segmentations"]]
    return np.stack(masks)


def read_frames(video: VisVideo) -> np.ndarray:
    """All frames of a video, uint8 (t, h, w, 3).

    Raises:
        BrokenItemError: a frame is missing, damaged or of another size.
    """
    frames = []
    for file in video.files:
        try:
            if not file.exists():
                raise BrokenItemError(f"no such frame: {file}")
            frames.append(read_image(str(file)))
        except BrokenVideoError as error:
            raise BrokenItemError(f"cannot read {file}: {error.reason}") from error
        if frames[-1].shape[:2] != (video.height, video.width):
            raise BrokenItemError(
                f"{file} has {frames[-1].shape[1]}x{frames[-1].shape[0]} pixels, its annotation "
                f"says {video.width}x{video.height}"
            )
    if not frames:
        raise BrokenItemError(f"the video {video.name} has no frames")
    return np.stack(frames)


def encode_mask(mask: np.ndarray) -> PackedMask:
    """A bool mask (h, w) as packed run lengths, JSON-able."""
    packed = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in packed["size"]], "counts": packed["counts"].decode("ascii")}


def pack(segmentation: Segmentation, height: int, width: int) -> PackedMask:
    """Run lengths in any published format, or polygons, as packed run lengths.

    Raises:
        ValueError: of another size than the video, or no mask at all.
    """
    if isinstance(segmentation, list):
        packed = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        packed = coco.frPyObjects(segmentation, height, width)
    else:
        packed = segmentation
    if [int(n) for n in packed["size"]] != [height, width]:
        raise ValueError(f"a mask of {packed['size']} in a video of {[height, width]}")
    counts = packed["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [height, width], "counts": text}


def decode_mask(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """The bool mask (height, width) of a segmentation in any published format.

    Raises:
        BrokenItemError: its run lengths are not those of a mask of that size.
        ValueError: as `pack`.
    """
    packed = pack(segmentation, height, width)
    try:
        return coco.decode(packed).astype(bool)
    except ValueError as error:
        raise BrokenItemError(f"a mask of {width}x{height} pixels: {error}") from error


def make_track(
    mask: np.ndarray, score: float, video: int, category: int, void: Sequence[np.ndarray | None]
) -> Track:
    """A predicted track of masks (t, h, w); pixels that do not count are taken out."""
    frames = [m if v is None else m & ~v for m, v in zip(mask, void, strict=True)]
    return {
        "video_id": video,
        "category_id": category,
        "score": score,
        "segmentations": [encode_mask(m) if m.any() else None for m in frames],
    }
