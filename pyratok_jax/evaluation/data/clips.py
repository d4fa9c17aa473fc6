"""Clips that tasks evaluate: which frames are taken, and how they are resized and cropped.

Zero-shot tasks sample frames evenly over time (`sample_frames`); reconstruction takes consecutive
frames from the middle and crops squares (`central_clip`). Raw 4:2:0 videos of 8 bits, as MCL-JCV
and UVG are published (NAME_WIDTHxHEIGHT_FPS.yuv), are read by `RawVideo`; UVG's of 10 bits are not.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from pyratok_jax.assets.fetch import sha256_of
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.files import (
    VideoSource,
    clock_of,
    is_remote,
    iter_span,
    probe,
    read_clip,
    read_image,
    resize_image,
)
from pyratok_jax.data.video.timeline import shown_at
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.task import BrokenItemError, Item

TOKENBENCH_SIDE, TOKENBENCH_FRAMES = 1080, 300


def resized(frame: np.ndarray, side: int) -> np.ndarray:
    """A frame (h, w, 3) whose shorter side has at most `side` pixels; 0 leaves it as it is."""
    height, width = frame.shape[:2]
    shorter = min(height, width)
    if not side or shorter <= side:
        return frame
    return resize_image(frame, (round(height * side / shorter), round(width * side / shorter)))


def sample_frames(
    path: VideoSource,
    count: int,
    side: int,
    *,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """`count` frames, uint8 (count, h, w, 3): the middles of as many equal parts of the span.

    Each is the frame shown at the middle of its part, by the frames' own times; only those that are
    taken are kept.

    Args:
        path: a video.
        count: number of frames; repeated ones where the video has fewer.
        side: as in `resized`.
        start: seconds where the span begins (None: the beginning).
        end: seconds where it ends (None: the end).

    Raises:
        BrokenItemError: the span holds no frame.
        BrokenVideoError: the video cannot be read.
    """
    rate, margin = clock_of(path)
    begin = start or 0.0
    until = probe(path).seconds if end is None else end
    for _ in range(2):  # A second time where the header was wrong about the length.
        seen: list[float] = []
        middles = [begin + (i + 0.5) * (until - begin) / count + margin for i in range(count)]
        timed = _noted(iter_span(path, start, end), seen)
        found = shown_at(timed, middles)
        for _ in timed:  # To the end, whose time is wanted.
            pass
        if not seen:
            raise BrokenItemError(f"there is no frame between {start} s and {end} s")
        longest = max([1 / rate, *np.diff(seen)])
        if seen[-1] < until <= seen[-1] + 1.5 * longest:
            break
        until = seen[-1] + 1 / rate
    found += found[-1:] * (count - len(found))
    return np.stack([resized(frame, side) for frame in found])


def _noted(
    frames: Iterable[tuple[float, np.ndarray]], seen: list[float]
) -> Iterator[tuple[float, np.ndarray]]:
    for time, frame in frames:
        seen.append(time)
        yield time, frame


def even_indices(available: int, count: int) -> list[int]:
    """Numbers of the frames in the middles of `count` equal parts of `available` frames."""
    return [int((i + 0.5) * available / count) for i in range(count)]


def clip_items(data: str) -> list[Item[ClipRecord]]:
    """One item per clip of a source."""
    return [Item(record.id, record) for record in load_source(data)]


def central_clip(record: ClipRecord, frames: int, side: int) -> np.ndarray:
    """`frames` consecutive frames from the middle, short side resized to `side`, square crop.

    Still images give one frame. `side` 0 keeps the size and crops nothing.
    """
    if record.stored is not None:
        return _from_images(record.stored, frames, side)
    info = probe(record.media)
    start, end = record.start or 0.0, record.end if record.end is not None else info.seconds
    count = min(frames, max(round((end - start) * info.fps), 1))
    first = start + max((end - start) - count / info.fps, 0.0) / 2
    size = covering_size((info.height, info.width), side) if side else None
    return square(read_clip(record.media, start=first, frames=count, size=size), side)


def tokenbench_clip(record: ClipRecord) -> np.ndarray:
    """A video as TokenBench's preprocessing leaves it, uint8 (t, h, w, 3).

    From its first frame on, as many frames as 10 s have but 300 at least; a short side above 1080
    pixels is brought down to that. Files that were prepared so are read as they are.
    """
    if record.stored is not None:
        return np.stack([read_image(image) for image in record.stored])
    info = probe(record.media)
    short, size = min(info.height, info.width), None
    if short > TOKENBENCH_SIDE:
        scale = TOKENBENCH_SIDE / short
        size = (int(info.height * scale + 0.5), int(info.width * scale + 0.5))
    count = max(math.ceil(10 * info.fps), TOKENBENCH_FRAMES)
    frames = iter_span(record.media, record.start, record.end, size)
    return np.stack([frame for _, frame in itertools.islice(frames, count)])


def covering_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of the same shape, of which the shorter is `side`."""
    scale = side / min(size)
    return max(round(size[0] * scale), side), max(round(size[1] * scale), side)


def square(video: np.ndarray, side: int) -> np.ndarray:
    """The middle `side` x `side` pixels of (t, h, w, 3); `side` 0: all."""
    if not side:
        return video
    top, left = (video.shape[1] - side) // 2, (video.shape[2] - side) // 2
    return video[:, top : top + side, left : left + side]


def prepared(frame: np.ndarray, side: int) -> np.ndarray:
    """A frame (h, w, 3), short side resized to `side` and cropped to a square; 0: as it is."""
    if not side:
        return frame
    return square(resize_image(frame, covering_size(frame.shape[:2], side))[None], side)[0]


def _from_images(images: Sequence[bytes], frames: int, side: int) -> np.ndarray:
    count = min(frames, len(images))
    first = (len(images) - count) // 2
    return np.stack([prepared(read_image(x), side) for x in images[first : first + count]])


def refuse_leakage(data: str, train: str) -> int:
    """Compare an evaluation source with a training source, by local path and by file content.

    Returns:
        how many files of `data` were compared.

    Raises:
        UserError: a file is in both.
    """
    evaluated, trained = _files(load_source(data)), _files(load_source(train))
    sizes = {path.stat().st_size for path in trained}
    known = {sha256_of(path) for path in trained} if sizes else set()
    shared = [p for p in evaluated if p.stat().st_size in sizes and sha256_of(p) in known]
    if shared:
        raise UserError(
            f"{len(shared)} of {len(evaluated)} files of {data} are also in the training source "
            f"{train}, first {shared[0]}; evaluate on files that were not trained on"
        )
    return len(evaluated)


def _files(records: Sequence[ClipRecord]) -> list[Path]:
    paths = {Path(r.path) for r in records if r.data is None and not is_remote(r.path)}
    return sorted(path for path in paths if path.is_file())


# Words of a name that state other samples than 8 bits 4:2:0.
_OTHER = re.compile(
    r"(9|1[0-6])bits?|p01[0-6]([lb]e)?|(yuv)?4(00|11|22|40|44)(p\d*([lb]e)?)?"
    r"|(yuv)?420p(9|1[0-6])([lb]e)?"
)
_NAME = re.compile(r"^(.+?)_(\d+)x(\d+)(?:_(\d+(?:\.\d+)?)(?:fps)?)?(?:_.*)?\.yuv$", re.IGNORECASE)


class RawVideo(NamedTuple):
    """A raw video on disk."""

    path: Path
    height: int
    width: int
    fps: float

    @property
    def frames(self) -> int:
        """Whole frames in the file."""
        return self.path.stat().st_size // self.frame_bytes

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame: luma, and two chroma planes of half the width and height."""
        return self.height * self.width + 2 * -(-self.height // 2) * -(-self.width // 2)


def raw_videos(folder: Path) -> list[RawVideo]:
    """All raw videos below a folder, by name; empty where there is none."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() == ".yuv")
    return [raw_video(path) for path in sorted(files) if path.is_file()]


def raw_video(path: Path) -> RawVideo:
    """A raw video by its name.

    One whose name states no size, or other samples than 8 bits 4:2:0, gets size 0 and cannot be
    read.
    """
    found = _NAME.match(path.name)
    if not found or _states_other_samples(path.name):
        return RawVideo(path, 0, 0, 0.0)
    _, width, height, fps = found.groups()
    return RawVideo(path, int(height), int(width), float(fps or 30))


def _states_other_samples(name: str) -> bool:
    """Whether a name states other samples than 8 bits 4:2:0."""
    joined = re.sub(r":|(?<=\d)[-_ ](?=bit)", "", name.lower())
    words = re.split("[^0-9a-z]+", joined)
    size = next((n for n, word in enumerate(words) if re.fullmatch(r"\d+x\d+", word)), 0)
    # A bare number before the size may be that of the clip.
    asked = (word for n, word in enumerate(words) if n > size or not word.isdigit())
    return any(_OTHER.fullmatch(word) for word in asked)


def read_raw(video: RawVideo, frames: int, side: int) -> np.ndarray:
    """`frames` consecutive frames from the middle, cut as `clips.central_clip` does.

    Colours are converted by BT.709, limited range.

    Raises:
        BrokenItemError: the name states no size or other samples, or the file has no whole number
            of frames of that size.
    """
    if _states_other_samples(video.path.name):
        raise BrokenItemError(
            f"{video.path}: expected 8 bits 4:2:0, its name states another format; convert it"
        )
    if not video.width or not video.height:
        raise BrokenItemError(f"{video.path}: expected a name like NAME_1920x1080_30.yuv")
    total, size = video.frames, f"{video.width}x{video.height}"
    if not total:
        raise BrokenItemError(f"{video.path} is smaller than one frame of {size}")
    if rest := video.path.stat().st_size % video.frame_bytes:
        raise BrokenItemError(
            f"{video.path}: {rest} bytes are left over after {total} frames of {size} in 8 bits "
            "4:2:0, expected none; its size or format is another, or it is cut off"
        )
    count = min(frames, total)
    first = (total - count) // 2
    with video.path.open("rb") as file:
        file.seek(first * video.frame_bytes)
        data = file.read(count * video.frame_bytes)
    planes = np.frombuffer(data, np.uint8).reshape(count, video.frame_bytes)
    return np.stack([prepared(_to_rgb(plane, video), side) for plane in planes])


def _to_rgb(plane: np.ndarray, video: RawVideo) -> np.ndarray:
    if video.height % 2 or video.width % 2:
        raise BrokenItemError(f"{video.path}: raw videos of odd sizes cannot be read")
    picture = av.VideoFrame.from_ndarray(plane.reshape(-1, video.width), "yuv420p")
    return picture.reformat(
        format="rgb24", src_colorspace="ITU709", interpolation="BICUBIC"
    ).to_ndarray()
