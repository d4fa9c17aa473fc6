"""Reading and writing videos: probing, whole iteration, seeking to short clips, atomic writing.

Frames are uint8 RGB (height, width, 3). Every source may be a local path, a remote path that
`etils.epath` understands (for example gs://), or the compressed file itself as bytes. Whatever
is wrong with a file is reported as `BrokenVideoError`, whose message names the file.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from etils import epath
from PIL import Image, UnidentifiedImageError

from pyratok_jax.data.video.seeking import frames_at
from pyratok_jax.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
NAME_OF_BYTES = "<bytes>"

VideoSource = str | os.PathLike | bytes


class BrokenVideoError(UserError):
    """A file that is not a readable video, or not readable to its end.

    `path` is the file and `reason` says what is wrong with it, without the file's name;
    `transient` tells that the file is on remote storage and may be there at the next attempt.
    """

    def __init__(self, path: str, reason: str, transient: bool = False) -> None:
        super().__init__(
            f"cannot read {path}: {reason}; expected a playable video or image: "
            "check the file or leave it out"
        )
        self.path = path
        self.reason = reason
        self.transient = transient

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason, self.transient)


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says: `frames` is exact or, where the file does not say, estimated."""

    path: str
    frames: int
    fps: float
    height: int
    width: int
    seconds: float


def name_of(source: VideoSource) -> str:
    """How messages call a source."""
    return NAME_OF_BYTES if isinstance(source, bytes) else os.fspath(source)


def is_remote(source: VideoSource) -> bool:
    """Whether a path is on remote storage."""
    return not isinstance(source, bytes) and "://" in name_of(source)


def is_image(source: VideoSource) -> bool:
    """Whether a path names a still image, by its suffix."""
    return not isinstance(source, bytes) and name_of(source).lower().endswith(IMAGE_SUFFIXES)


@contextlib.contextmanager
def _readable(source: VideoSource) -> Iterator[Any]:
    """The source as what PyAV opens: a local path stays a path, all else is a seekable file."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif is_remote(source):
        with epath.Path(source).open("rb") as file:
            yield file
    else:
        yield name_of(source)


@contextlib.contextmanager
def opened(source: VideoSource, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and first video stream; whatever fails inside becomes our error.

    Raises:
        BrokenVideoError: unreadable, or no video stream.
    """
    name = name_of(source)
    try:
        with _readable(source) as readable, av.open(readable) as container:
            if not container.streams.video:
                raise BrokenVideoError(name, "it holds no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            yield container, stream
    except FileNotFoundError as error:
        raise BrokenVideoError(name, "no such file", is_remote(source)) from error
    except av.error.FFmpegError as error:
        raise BrokenVideoError(name, error.strerror or type(error).__name__) from error
    except OSError as error:
        raise BrokenVideoError(name, error.strerror or str(error), is_remote(source)) from error


def _rate(stream: Any) -> Fraction:
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def _duration(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _info(source: VideoSource, container: Any, stream: Any) -> VideoInfo:
    fps, seconds = float(_rate(stream)), _duration(container, stream)
    frames = stream.frames or round(seconds * fps)
    size = stream.codec_context
    if not size.width or not size.height:
        raise BrokenVideoError(name_of(source), "its video stream has no size")
    return VideoInfo(name_of(source), frames, fps, size.height, size.width, seconds or frames / fps)


def probe(path: VideoSource) -> VideoInfo:
    """Read a video's header; nothing is decoded, except a first frame where no length is given.

    A still image counts as a video of one frame at 1 fps.

    Raises:
        BrokenVideoError: not a video, no video stream, or an empty one.
    """
    if is_image(path):
        height, width = read_image(path).shape[:2]
        return VideoInfo(name_of(path), 1, 1.0, height, width, 1.0)
    with opened(path) as (container, stream):
        info = _info(path, container, stream)
        if info.frames <= 0 and next(container.decode(stream), None) is None:
            raise BrokenVideoError(name_of(path), "its video stream holds no frame")
        return info


def iter_frames(
    path: VideoSource, start: int = 0, stop: int | None = None, threads: int = 0
) -> Iterator[np.ndarray]:
    """Frames `start` up to, not including, `stop` (None: to the end) as uint8 (h, w, 3).

    Args:
        path: a video or a still image.
        start: first frame, counted in decoding order from 0.
        stop: where to stop.
        threads: decoder threads; 0 lets FFmpeg choose.

    Raises:
        BrokenVideoError: unreadable, empty, or ending before the length its header states.
    """
    if is_image(path):
        yield from [read_image(path)][start:stop]
        return
    for frame in _decoded(path, start, stop, threads):
        yield frame.to_ndarray(format="rgb24")


def count_frames(path: VideoSource, start: float | None = None, end: float | None = None) -> int:
    """Decode a video, or the span of seconds given, without keeping it: the number of its frames.

    Raises:
        BrokenVideoError: as `iter_frames`; also when the span holds no frame.
    """
    if is_image(path):
        return len(read_image(path)[None])
    if start is None and end is None:
        return sum(1 for _ in _decoded(path, 0, None, 1))
    with opened(path) as (container, stream):
        begin = float((stream.start_time or 0) * stream.time_base)
        margin = 0.25 / float(_rate(stream))
        low = begin + (start or 0.0) - margin
        high = float("inf") if end is None else begin + end - margin
        if low > 0:
            container.seek(int(low / stream.time_base), stream=stream, backward=True)
        count = 0
        for frame in container.decode(stream):
            time = low if frame.time is None else frame.time
            if time >= high:
                break
            count += time >= low
        if not count:
            raise BrokenVideoError(name_of(path), f"no frame between {start} s and {end} s")
        return count


def _decoded(source: VideoSource, start: int, stop: int | None, threads: int) -> Iterator[Any]:
    with opened(source, threads) as (container, stream):
        end, count = 0.0, 0
        for count, frame in enumerate(container.decode(stream), start=1):
            if stop is not None and count > stop:
                return
            if frame.time is not None:
                end = frame.time + float((frame.duration or 0) * (frame.time_base or 0))
            if count > start:
                yield frame
        if not count:
            raise BrokenVideoError(name_of(source), "its video stream holds no frame")
        begin = float((stream.start_time or 0) * stream.time_base)
        missing = begin + _duration(container, stream) - end
        whole = stop is None and end and stream.frames > count
        if whole and missing > 2.5 / float(_rate(stream)):
            reason = f"it is cut off: {count} of {stream.frames} frames can be decoded"
            raise BrokenVideoError(name_of(source), reason)


def read_clip(
    path: VideoSource,
    *,
    start: float,
    frames: int,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """A short clip by time, decoding only from the key frame before it: uint8 (t, h, w, 3).

    Args:
        path: a video or a still image (repeated).
        start: seconds of the first frame, counted from the video's first frame.
        frames: how many frames; past the end of the video the last frame is repeated.
        fps: the rate to sample at, nearest earlier frame (None: the video's own rate).
        size: (height, width) to resize to while colours are converted (None: the video's own).

    Raises:
        BrokenVideoError: unreadable, or no frame at or before the wanted time.
    """
    if is_image(path):
        image = read_image(path)
        image = image if size is None else resize_image(image, size)
        return np.repeat(image[None], frames, axis=0)
    with opened(path) as (container, stream):
        begin = float((stream.start_time or 0) * stream.time_base)
        rate = float(_rate(stream))
        step = 1 / (fps or rate)
        # A quarter of a frame late: rounded time stamps must not select the frame before.
        times = [begin + start + i * step + 0.25 / rate for i in range(frames)]
        picked = frames_at(container, stream, times, rate)
        if not picked:
            raise BrokenVideoError(name_of(path), f"no frame can be decoded at {start:.2f} s")
        scaler = VideoReformatter()  # One for all frames: it keeps its tables.
        arrays = {id(frame): _to_array(frame, size, scaler) for frame in picked}
        clip = [arrays[id(frame)] for frame in picked]
    return np.stack(clip + [clip[-1]] * (frames - len(clip)))


def _to_array(frame: Any, size: tuple[int, int] | None, scaler: VideoReformatter) -> np.ndarray:
    if size is None:
        return frame.to_ndarray(format="rgb24")
    # Area averaging is FFmpeg's cheapest filter that does not alias when it shrinks.
    height, width = size
    scaled = scaler.reformat(frame, width, height, "rgb24", interpolation="AREA")
    return scaled.to_ndarray()


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One uint8 (h, w, 3) image resized to (height, width) with an anti-aliased bicubic filter."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


def read_image(path: VideoSource) -> np.ndarray:
    """A still image as uint8 (h, w, 3): grey, palette, 16-bit and transparent ones are converted.

    Raises:
        BrokenVideoError: missing or not an image.
    """
    name = name_of(path)
    try:
        data = path if isinstance(path, bytes) else epath.Path(path).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I"):  # PIL clips 16-bit grey at 255 instead of scaling it.
                grey = np.asarray(image).astype(np.float64) / 257.0
                return np.repeat(np.rint(grey)[..., None], 3, axis=-1).astype(np.uint8)
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise BrokenVideoError(name, "no such file", is_remote(path)) from error
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise BrokenVideoError(name, f"not an image ({error})") from error


class _Sized(Protocol):
    shape: tuple[int, ...]


class VideoWriter:
    """Writes frames to an H.264 file that appears under its name only when it is complete.

    Use as a context manager; `write` takes uint8 (h, w, 3). An exception inside, or no frame at
    all, leaves no file behind. Odd sizes are stored as 4:4:4, since 4:2:0 needs even sides.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        fps: float,
        crf: int = 18,
        preset: str = "medium",
        threads: int = 0,
    ) -> None:
        self.path = Path(path)
        self._fps, self._crf, self._preset, self._threads = fps, crf, preset, threads
        self._container: Any = None
        self._stream: Any = None
        self._scratch: str = ""

    def __enter__(self) -> "VideoWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, self._scratch = tempfile.mkstemp(
            dir=self.path.parent, prefix=f".{self.path.stem}.", suffix=self.path.suffix or ".mp4"
        )
        os.close(handle)
        self._container = av.open(
            self._scratch, "w", format="mp4", options={"movflags": "faststart"}
        )
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append one uint8 frame (h, w, 3); all frames of a file have the size of the first."""
        if self._stream is None:
            self._open_stream(frame)
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))

    def _open_stream(self, frame: _Sized) -> None:
        height, width = frame.shape[:2]
        rate = Fraction(self._fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        self._stream.codec_context.thread_count = self._threads
        self._stream.options = {"crf": str(self._crf), "preset": self._preset}

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        try:
            if self._stream is not None and kind is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if self._stream is not None and kind is None:
                os.chmod(self._scratch, 0o644)
                os.replace(self._scratch, self.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._scratch)
