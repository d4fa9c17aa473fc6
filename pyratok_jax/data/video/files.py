"""Reading videos: probing, whole iteration, seeking to short clips.

Frames are uint8 RGB (height, width, 3). Every source may be a local path, a remote path that
`etils.epath` understands (for example gs://), or the compressed file itself as bytes. Whatever
is wrong with a file is reported as `BrokenVideoError`, whose message names the file.
"""

import contextlib
import io
import itertools
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from pyratok_jax.data.video.seeking import frames_at
from pyratok_jax.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv", ".gif")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
IMAGE_SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"BM")
NAME_OF_BYTES = "<bytes>"

_REMOTE = ("gs", "s3", "az", "abfs", "hf")
# FFmpeg may open these containers alone: others (concat, hls, dash, sdp, rtsp) name further files
# or addresses to open.
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpeg", "mpegts", "mpegvideo", "ogg", "gif",
)  # fmt: skip
_OPTIONS = {"format_whitelist": ",".join(DEMUXERS), "protocol_whitelist": "none"}
MAX_TEXT_BYTES = 1 << 24  # Of a sidecar.
MAX_PIXELS = 1 << 27  # Of a picture or a frame.

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
    """Whether it is a still image: a path by its suffix, bytes by their first ones."""
    if isinstance(source, bytes):
        webp = source[:4] == b"RIFF" and source[8:12] == b"WEBP"
        return webp or source.startswith(IMAGE_SIGNATURES)
    return name_of(source).lower().endswith(IMAGE_SUFFIXES)


@contextlib.contextmanager
def _readable(source: VideoSource) -> Iterator[Any]:
    """The source as what PyAV opens: always a seekable file object.

    FFmpeg gets no name at all: it would take some for addresses, patterns or devices.

    Raises:
        BrokenVideoError: not a regular file, or an address that is no remote storage.
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    check_regular(source)
    if is_remote(source):
        with epath.Path(source).open("rb") as file:
            yield file
    else:
        with open(os.path.abspath(source), "rb") as local:
            yield local


def check_regular(source: str | os.PathLike) -> None:
    """Refuse pipes, devices, sockets, folders, and addresses that are no remote storage.

    Raises:
        BrokenVideoError: saying which.
        FileNotFoundError: no such file.
    """
    name = os.fspath(source)
    if "://" in name:
        if name.partition("://")[0] not in _REMOTE:
            raise BrokenVideoError(name, f"only files and {', '.join(_REMOTE)} are opened")
        return
    if "\0" in name:
        raise BrokenVideoError(name, "no file's name holds a zero byte")
    mode = os.stat(name).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise BrokenVideoError(name, f"it is {kind}, not a regular file")


@contextlib.contextmanager
def opened(source: VideoSource, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """PyAV's container and first video stream; whatever fails inside becomes our error.

    Raises:
        BrokenVideoError: unreadable, or no video stream.
    """
    name = name_of(source)
    try:
        with _readable(source) as readable, _open(readable) as container:
            stream = _video_stream(name, container)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            yield container, stream
    except FileNotFoundError as error:
        raise BrokenVideoError(name, "no such file", is_remote(source)) from error
    except av.error.FFmpegError as error:
        raise BrokenVideoError(name, error.strerror or type(error).__name__) from error
    except OSError as error:
        raise BrokenVideoError(name, error.strerror or str(error), is_remote(source)) from error
    except (ValueError, TypeError, AttributeError, OverflowError, ImportError) as error:
        # PyAV raises these for damaged files: metadata, absent decoders, absurd sizes.
        raise BrokenVideoError(name, f"{type(error).__name__}: {error}") from error


def _open(readable: Any) -> Any:
    """PyAV's container, which follows no reference to another file."""
    return av.open(
        readable, container_options=_OPTIONS, metadata_errors="replace", buffer_size=1 << 17
    )


def _video_stream(name: str, container: Any) -> Any:
    """The first video stream that is no cover picture."""
    cover = Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        raise BrokenVideoError(name, "it holds no video stream")
    context = streams[0].codec_context
    if context is None:
        raise BrokenVideoError(name, "no decoder knows its video stream")
    if context.width * context.height > MAX_PIXELS:
        size = f"{context.width}x{context.height}"
        raise BrokenVideoError(name, f"its frames of {size} have more than {MAX_PIXELS} pixels")
    return streams[0]


# Rates above are those of a clock in milliseconds, not of frames.
_MOST_FPS = 480


def frame_rate(container: Any, stream: Any) -> Fraction:
    """Frames per second: of the header or, where it states none that is sane, of the packets."""
    stated = [r for r in (stream.average_rate, stream.guessed_rate) if r and 0 < r <= _MOST_FPS]
    if stated:
        return stated[0]
    times = sorted(time for time, _ in itertools.islice(_packet_spans(container, stream), 256))
    container.seek(0)
    if len(times) > 1 and times[-1] > times[0]:
        mean = (len(times) - 1) / (times[-1] - times[0])
        return Fraction(min(mean, _MOST_FPS)).limit_denominator(1001) or Fraction(25)
    return Fraction(25)


def _packet_spans(container: Any, stream: Any) -> Iterator[tuple[float, float]]:
    """Begin and end of the frames of a stream, by its packets, in seconds on its clock."""
    for packet in container.demux(stream):
        if packet.size and packet.pts is not None and not packet.is_discard:
            begin = float(packet.pts * stream.time_base)
            yield begin, begin + float((packet.duration or 0) * stream.time_base)


def pixel_aspect(stream: Any) -> Fraction:
    """Width over height of a pixel, as a player shows it (1 where it is not stated or absurd)."""
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return ratio if ratio and Fraction(1, 8) <= ratio <= 8 else Fraction(1)


def quarter_turns(frame: Any) -> int:
    """Quarter turns against the clock that show a decoded frame upright (display matrix)."""
    return round(frame.rotation / 90) % 4


def _duration(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else 0.0


def _info(source: VideoSource, container: Any, stream: Any) -> VideoInfo:
    rate, seconds = frame_rate(container, stream), _duration(container, stream)
    fps, frames = float(rate), stream.frames
    size = stream.codec_context
    if not size.width or not size.height:
        raise BrokenVideoError(name_of(source), "its video stream has no size")
    if seconds <= 0 and frames <= 0:
        # No header says how long it is: live recordings and files that were cut off.
        spans = list(_packet_spans(container, stream))
        frames = len(spans)
        if frames:
            first, last = min(b for b, _ in spans), max(b for b, _ in spans)
            seconds = max(max(e for _, e in spans), last + 1 / fps) - first
        container.seek(0)
    frames = frames or round(seconds * fps)
    height, width = size.height, round(size.width * pixel_aspect(stream))
    with contextlib.suppress(av.error.FFmpegError, StopIteration):
        if quarter_turns(next(container.decode(stream))) % 2:
            height, width = width, height
    return VideoInfo(name_of(source), frames, fps, height, width, seconds or frames / fps)


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
    scaler = VideoReformatter()
    for frame, aspect in _decoded(path, start, stop, threads):
        yield to_array(frame, aspect, None, scaler)


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
        margin = 0.25 / float(frame_rate(container, stream))
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


def _decoded(
    source: VideoSource, start: int, stop: int | None, threads: int
) -> Iterator[tuple[Any, Fraction]]:
    with opened(source, threads) as (container, stream):
        end, count = 0.0, 0
        for count, frame in enumerate(container.decode(stream), start=1):
            if stop is not None and count > stop:
                return
            if frame.time is not None:
                end = frame.time + float((frame.duration or 0) * (frame.time_base or 0))
            if count > start:
                yield frame, pixel_aspect(stream)
        if not count:
            raise BrokenVideoError(name_of(source), "its video stream holds no frame")
        begin = float((stream.start_time or 0) * stream.time_base)
        missing = begin + _duration(container, stream) - end
        whole = stop is None and end and stream.frames > count
        if whole and missing > 2.5 / float(frame_rate(container, stream)):
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
        rate = float(frame_rate(container, stream))
        step = 1 / (fps or rate)
        # A quarter of a frame late: rounded time stamps must not select the frame before.
        times = [begin + start + i * step + 0.25 / rate for i in range(frames)]
        picked = frames_at(container, stream, times, rate)
        if not picked:
            raise BrokenVideoError(name_of(path), f"no frame can be decoded at {start:.2f} s")
        scaler = VideoReformatter()  # One for all frames: it keeps its tables.
        arrays = {
            id(frame): to_array(frame, pixel_aspect(stream), size, scaler) for frame in picked
        }
        clip = [arrays[id(frame)] for frame in picked]
    return np.stack(clip + [clip[-1]] * (frames - len(clip)))


def to_array(
    frame: Any, aspect: Fraction, size: tuple[int, int] | None, scaler: VideoReformatter
) -> np.ndarray:
    """A decoded frame as a player shows it, uint8 (h, w, 3): upright, with square pixels.

    Args:
        frame: PyAV's frame.
        aspect: width over height of its pixels.
        size: (height, width) of the result; None: the frame's, widened to square pixels.
        scaler: one for all frames, which keeps its tables.
    """
    turns = quarter_turns(frame)
    if size is None and aspect == 1:
        array = frame.to_ndarray(format="rgb24")
    else:
        if size is None:
            height, width = frame.height, max(round(frame.width * aspect), 1)
        else:
            height, width = size[::-1] if turns % 2 else size
        # Area averaging is FFmpeg's cheapest filter that does not alias when it shrinks.
        array = scaler.reformat(frame, width, height, "rgb24", interpolation="AREA").to_ndarray()
    return np.ascontiguousarray(np.rot90(array, turns)) if turns else array


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
        if not isinstance(path, bytes):
            check_regular(path)
        data = path if isinstance(path, bytes) else epath.Path(path).read_bytes()
        with Image.open(io.BytesIO(data)) as stored:
            if stored.width * stored.height > MAX_PIXELS:
                size = f"{stored.width}x{stored.height}"
                raise BrokenVideoError(name, f"its {size} pixels are more than {MAX_PIXELS}")
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith("I"):  # PIL clips 16-bit grey at 255 instead of scaling it.
                grey = np.asarray(image).astype(np.float64) / 257.0
                return np.repeat(np.rint(grey)[..., None], 3, axis=-1).astype(np.uint8)
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise BrokenVideoError(name, "no such file", is_remote(path)) from error
    except (
        UnidentifiedImageError, OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError,
        AttributeError, OverflowError, struct.error, zlib.error, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        # All of these are raised by Pillow for damaged files.
        raise BrokenVideoError(name, f"not an image ({error})") from error
