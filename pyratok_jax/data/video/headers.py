"""What a video's header says: size, rate and length, measured where it says nothing sane."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from pyratok_jax.data.video.containers import may_be_turned
from pyratok_jax.data.video.display import orientation, pixel_aspect
from pyratok_jax.data.video.limits import in_time
from pyratok_jax.data.video.opening import (
    BrokenVideoError,
    VideoSource,
    is_image,
    name_of,
    opened,
)
from pyratok_jax.data.video.pictures import read_image
from pyratok_jax.data.video.timeline import packets_of, tolerance


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header says: `frames` is exact or, where the file does not say, estimated."""

    path: str
    frames: int
    fps: float
    height: int
    width: int
    seconds: float


# Containers in which no header says how long they are, or only what the first and last time are.
_UNMEASURED = ("mpeg", "mpegvideo", "mpegts")
_MOST_REORDERED = 16  # Frames.
# Rates above are those of a clock in milliseconds, not of frames; those below of a broken clock.
_LEAST_FPS, _MOST_FPS = 1e-3, 480


def frame_rate(source: VideoSource, container: Any, stream: Any) -> float:
    """Frames per second: of the header or, where it states none that is sane, of the packets.

    Args:
        source: what is measured, in a container of its own, where the header is no help.
        container: its container, which is not read from.
        stream: its video stream.
    """
    rates = (stream.average_rate, stream.guessed_rate)
    stated = [rate for rate in rates if rate and _LEAST_FPS <= rate <= _MOST_FPS]
    if stated:
        return float(stated[0])
    with opened(source) as (other, same):
        times = sorted(time for time, _ in itertools.islice(_packet_spans(other, same), 256))
    if len(times) > 1 and times[-1] > times[0]:
        mean = (len(times) - 1) / (times[-1] - times[0])
        return float(Fraction(min(mean, _MOST_FPS)).limit_denominator(1001)) or 25.0
    return 25.0


def clock_of(source: VideoSource) -> tuple[float, float]:
    """A video's frames per second, and the slack of its times in seconds (`timeline.tolerance`).

    Raises:
        BrokenVideoError: unreadable.
    """
    with opened(source) as (container, stream):
        rate = frame_rate(source, container, stream)
        return rate, tolerance(stream, rate)


def _packet_spans(container: Any, stream: Any) -> Iterator[tuple[float, float]]:
    """Begin and end of the frames of a stream, by its packets, in seconds on its clock."""
    for packet in packets_of(container, stream):
        if packet.size and packet.pts is not None and not packet.is_discard:
            begin = float(packet.pts * stream.time_base)
            yield begin, begin + float((packet.duration or 0) * stream.time_base)


def duration_of(source: VideoSource, container: Any, stream: Any) -> float:
    """Seconds that the header states (0: none), from the first frame on."""
    name, tick = container.format.name, stream.time_base or 0
    fragmented = name.startswith("mov,") and not stream.frames
    seconds = float((stream.duration or 0) * tick)
    if seconds and not fragmented:
        return seconds
    seconds = seconds or (container.duration / av.time_base if container.duration else 0.0)
    start = float((stream.start_time or 0) * tick)
    if seconds and (fragmented or (start > 0.5 and name.startswith("matroska"))):
        # Some writers count from 0, others from the first frame: look at the end.
        with opened(source) as (other, same):
            other.seek(int((start + seconds) / same.time_base), stream=same, backward=True)
            seconds = max((end - start for _, end in _packet_spans(other, same)), default=seconds)
    return seconds


def _measured(container: Any, stream: Any, fps: float) -> tuple[int, float]:
    """The number of a stream's pictures and their seconds, by its packets.

    Pictures before the first key frame cannot be decoded. Where times jump back by more than
    reordering does (streams that were joined), they continue, as in `timeline.FrameClock`.
    """
    frames, seconds, least = 0, 0.0, None
    begin = end = 0.0
    for packet in packets_of(container, stream):
        if not packet.size or packet.pts is None or packet.is_discard:
            continue
        time = float(packet.pts * stream.time_base)
        if least is None:
            if not packet.is_keyframe:
                continue
            least = begin = end = time
        elif time < end - max(1.0, _MOST_REORDERED / fps):
            seconds += end - begin
            least = begin = end = time
        if time >= least:
            frames += 1
        length = max(float((packet.duration or 0) * stream.time_base), 1 / fps)
        end = max(end, time + length)
    return frames, seconds + end - begin


def _is_transposed(container: Any, stream: Any) -> bool:
    return orientation(next(container.decode(stream))).transposed


def _info(source: VideoSource, container: Any, stream: Any) -> VideoInfo:
    fps, seconds = frame_rate(source, container, stream), duration_of(source, container, stream)
    frames = stream.frames
    size = stream.codec_context
    if not size.width or not size.height:
        raise BrokenVideoError(name_of(source), "its video stream has no size")
    if container.format.name in _UNMEASURED or (seconds <= 0 and frames <= 0):
        # No header says how long it is: program streams, live recordings, files that were cut off.
        with opened(source) as (other, same):
            frames, seconds = _measured(other, same, fps)
    estimate = round(seconds * fps)
    if not frames or frames > estimate + 1:  # The header counts what an edit list hides, too.
        frames = estimate or frames
    height, width = size.height, round(size.width * pixel_aspect(stream))
    with contextlib.suppress(av.error.FFmpegError, StopIteration):
        if may_be_turned(source, container) and _is_transposed(container, stream):
            height, width = width, height
    return VideoInfo(name_of(source), frames, fps, height, width, seconds or frames / fps)


def probe(path: VideoSource) -> VideoInfo:
    """Read a video's header.

    A first frame is decoded where the header may state a rotation, or no length is given.

    A still image counts as a video of one frame at 1 fps.

    Raises:
        BrokenVideoError: not a video, no video stream, or an empty one.
    """
    if is_image(path):
        height, width = read_image(path).shape[:2]
        return VideoInfo(name_of(path), 1, 1.0, height, width, 1.0)
    return in_time(lambda: _probed(path), name_of(path))


def _probed(path: VideoSource) -> VideoInfo:
    with opened(path) as (container, stream):
        info = _info(path, container, stream)
        if info.frames <= 0 and next(container.decode(stream), None) is None:
            raise BrokenVideoError(name_of(path), "its video stream holds no frame")
        return info
