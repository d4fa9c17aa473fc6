"""Raw 4:2:0 videos, as MCL-JCV and UVG are published: NAME_WIDTHxHEIGHT_FPS.yuv, 8 bits."""

import re
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from pyratok_jax.evaluation.data.clips import prepared
from pyratok_jax.evaluation.task import BrokenItemError

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
    """A raw video by its name; one whose name states no size gets size 0 and cannot be read."""
    found = _NAME.match(path.name)
    if not found:
        return RawVideo(path, 0, 0, 0.0)
    _, width, height, fps = found.groups()
    return RawVideo(path, int(height), int(width), float(fps or 30))


def read_raw(video: RawVideo, frames: int, side: int) -> np.ndarray:
    """`frames` consecutive frames from the middle, cut as `clips.central_clip` does.

    Colours are converted by BT.709, limited range.

    Raises:
        BrokenItemError: the name states no size, or the file is too short for it.
    """
    if not video.width or not video.height:
        raise BrokenItemError(f"{video.path}: expected a name like NAME_1920x1080_30.yuv")
    total = video.frames
    if not total:
        size = f"{video.width}x{video.height}"
        raise BrokenItemError(f"{video.path} is smaller than one frame of {size}")
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
