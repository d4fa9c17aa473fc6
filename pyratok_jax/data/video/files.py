"""Reading videos: whole iteration, spans, and random access to short clips.

Frames are uint8 RGB (height, width, 3). Every source may be a local path, a remote path that
`etils.epath` understands (for example gs://), or the compressed file itself as bytes. Whatever
is wrong with a file is reported as `BrokenVideoError`, whose message names the file; so is a file
for whose next frame FFmpeg takes longer than `limits.MAX_WAIT_SECONDS`.
"""

from collections.abc import Generator, Iterator
from fractions import Fraction

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from pyratok_jax.data.video.containers import may_be_turned
from pyratok_jax.data.video.display import (
    UnshowableError,
    orientation,
    pixel_aspect,
    to_array,
)
from pyratok_jax.data.video.headers import (
    VideoInfo,
    clock_of,
    duration_of,
    frame_rate,
    probe,
)
from pyratok_jax.data.video.limits import in_time, limited
from pyratok_jax.data.video.opening import (
    DEMUXERS,
    IMAGE_SIGNATURES,
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    MAX_TEXT_BYTES,
    NAME_OF_BYTES,
    VIDEO_SUFFIXES,
    BrokenVideoError,
    VideoSource,
    check_regular,
    is_image,
    is_remote,
    name_of,
    opened,
)
from pyratok_jax.data.video.pictures import read_image, resize_image
from pyratok_jax.data.video.timeline import (
    UntrustedTimes,
    frames_at,
    frames_from,
    shown_at,
    timed_frames,
    tolerance,
    within,
)

__all__ = [
    "DEMUXERS",
    "IMAGE_SIGNATURES",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "MAX_TEXT_BYTES",
    "NAME_OF_BYTES",
    "VIDEO_SUFFIXES",
    "BrokenVideoError",
    "VideoInfo",
    "VideoSource",
    "check_regular",
    "clock_of",
    "count_frames",
    "frame_rate",
    "is_image",
    "is_remote",
    "iter_frames",
    "iter_span",
    "name_of",
    "opened",
    "probe",
    "read_clip",
    "read_image",
    "resize_image",
    "span_times",
]


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
    shown = _Shown(path, None)
    decoded = limited(_decoded(path, stop, threads), name_of(path))
    for number, (_, frame, aspect) in enumerate(decoded):
        if number >= start:
            yield shown(frame, aspect)


def iter_span(
    path: VideoSource,
    start: float | None = None,
    end: float | None = None,
    size: tuple[int, int] | None = None,
    threads: int = 1,
) -> Iterator[tuple[float, np.ndarray]]:
    """(time, frame) of the frames that begin in the seconds [start, end), without holding them.

    Args:
        path: a video or a still image (one frame at 0, whatever the span).
        start: seconds after the first frame (None: from the beginning).
        end: likewise (None: to the end).
        size: (height, width) to resize to while colours are converted (None: the video's own).
        threads: decoder threads; 0 lets FFmpeg choose.

    Yields:
        seconds after the video's first frame, and uint8 (h, w, 3). Where no frame begins in the
        span, the one that is shown there.

    Raises:
        BrokenVideoError: unreadable, or the video ends before the span begins.
    """
    if is_image(path):
        image = read_image(path)
        yield 0.0, image if size is None else resize_image(image, size)
        return
    shown = _Shown(path, size)
    for time, frame, aspect in _span(path, start, end, threads):
        yield time, shown(frame, aspect)


def count_frames(path: VideoSource, start: float | None = None, end: float | None = None) -> int:
    """Decode a video, or the span of seconds given, without keeping it: the number of its frames.

    Raises:
        BrokenVideoError: as `iter_span`.
    """
    if is_image(path):
        return len(read_image(path)[None])
    return sum(1 for _ in _span(path, start, end, 1))


def span_times(path: VideoSource, start: float | None, end: float | None) -> list[float]:
    """Times of the frames of a span of a video, as `iter_span` gives them; it is decoded."""
    return [time for time, _, _ in _span(path, start, end, 1)]


def _span(
    source: VideoSource, start: float | None, end: float | None, threads: int
) -> Iterator[tuple[float, VideoFrame, Fraction]]:
    """Frames of a span with their times and pixel aspects, by random access where it is exact."""
    return limited(_decoded_span(source, start, end, threads), name_of(source))


def _decoded_span(
    source: VideoSource, start: float | None, end: float | None, threads: int
) -> Generator[tuple[float, VideoFrame, Fraction], None, None]:
    low, high = start or 0.0, float("inf") if end is None else end
    if start is None and end is None:
        yield from _decoded(source, None, threads)
        return
    with opened(source, threads) as (container, stream):
        rate, size = frame_rate(source, container, stream), _size(stream)
        margin, step = tolerance(stream, rate), 1.0 / rate
        found = frames_from(container, stream, low + margin) if low > 0 else None
        given = 0
        try:
            for time, frame in within(found or (), low, high, margin, step):
                given += 1
                _refuse_another_size(frame, size)
                yield time, frame, pixel_aspect(stream)
            if given:
                return
        except UntrustedTimes:
            pass
    timed = ((time, (frame, aspect)) for time, frame, aspect in _decoded(source, None, threads))
    number = 0
    for number, (time, shown) in enumerate(within(timed, low, high, margin, step), start=1):
        if number > given:
            yield time, *shown
    if not number:
        raise BrokenVideoError(name_of(source), f"no frame between {start} s and {end} s")


def _decoded(
    source: VideoSource, stop: int | None, threads: int
) -> Generator[tuple[float, VideoFrame, Fraction], None, None]:
    """Times, frames and pixel aspects of a sequential decode.

    Raises:
        BrokenVideoError: no frame, or fewer than the header states.
    """
    with opened(source, threads) as (container, stream):
        rate, size = frame_rate(source, container, stream), _size(stream)
        end, count = 0.0, 0
        frames = enumerate(timed_frames(container, stream, rate), start=1)
        for count, (time, frame) in frames:
            if stop is not None and count > stop:
                return
            _refuse_another_size(frame, size)
            end = time + float((frame.duration or 0) * (frame.time_base or 0))
            yield time, frame, pixel_aspect(stream)
        if not count:
            raise BrokenVideoError(name_of(source), "its video stream holds no frame")
        missing = duration_of(source, container, stream) - end
        if stop is None and stream.frames > count and missing > 2.5 / rate:
            reason = f"it is cut off: {count} of {stream.frames} frames can be decoded"
            raise BrokenVideoError(name_of(source), reason)


def _size(stream: VideoStream) -> tuple[int, int]:
    return stream.codec_context.width, stream.codec_context.height


def _refuse_another_size(frame: VideoFrame, size: tuple[int, int]) -> None:
    """Players scale such frames to a window; there is none here. Raises: UnshowableError."""
    if (frame.width, frame.height) != size and all(size):
        found = f"{frame.width}x{frame.height}"
        raise UnshowableError(f"it changes its size from {size[0]}x{size[1]} to {found}")


def read_clip(
    path: VideoSource,
    *,
    start: float,
    frames: int,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """A short clip by time, decoding only what is needed: uint8 (t, h, w, 3).

    Args:
        path: a video or a still image (repeated).
        start: seconds of the first frame, counted from the video's first frame.
        frames: how many frames; past the end of the video the last frame is repeated.
        fps: the rate to sample at, the frame shown at each time (None: the video's own rate).
        size: (height, width) to resize to while colours are converted (None: the video's own).

    Raises:
        BrokenVideoError: unreadable, or no frame at or before the wanted time.
    """
    if is_image(path):
        image = read_image(path)
        image = image if size is None else resize_image(image, size)
        return np.repeat(image[None], frames, axis=0)
    clip = in_time(lambda: _clip(path, start, frames, fps, size), name_of(path))
    return np.stack(clip + [clip[-1]] * (frames - len(clip)))


def _clip(
    path: VideoSource, start: float, frames: int, fps: float | None, size: tuple[int, int] | None
) -> list[np.ndarray]:
    """The frames of `read_clip`; fewer where the video ends before."""
    with opened(path) as (container, stream):
        rate = frame_rate(path, container, stream)
        margin = tolerance(stream, rate)
        times = [max(start + i / (fps or rate), 0.0) + margin for i in range(frames)]
        aspect = pixel_aspect(stream)
        coded, picked = _size(stream), frames_at(container, stream, times)
        for frame in picked or ():
            _refuse_another_size(frame, coded)
    if picked is None:
        picked = shown_at(((time, frame) for time, frame, _ in _decoded(path, None, 1)), times)
    if not picked:
        raise BrokenVideoError(name_of(path), f"no frame can be decoded at {start:.2f} s")
    return _arrays(path, picked, aspect, size)


def _arrays(
    source: VideoSource, picked: list[VideoFrame], aspect: Fraction, size: tuple[int, int] | None
) -> list[np.ndarray]:
    shown = _Shown(source, size)
    arrays = {id(frame): shown(frame, aspect) for frame in picked}
    return [arrays[id(frame)] for frame in picked]


class _Shown:
    """Decoded frames of one video as a player shows them, see `to_array`.

    A quarter turn that the coded pictures alone state is refused: `probe` does not see it, and
    would give width for height.
    """

    def __init__(self, source: VideoSource, size: tuple[int, int] | None) -> None:
        self._source, self._size = source, size
        self._scaler = VideoReformatter()  # One for all frames: it keeps its tables.
        self._turn_is_stated = False

    def __call__(self, frame: VideoFrame, aspect: Fraction) -> np.ndarray:
        """uint8 (h, w, 3). Raises: BrokenVideoError."""
        try:
            if not self._turn_is_stated and orientation(frame).transposed:
                self._refuse_unstated_turn()
            return to_array(frame, aspect, self._size, self._scaler)
        except UnshowableError as error:
            raise BrokenVideoError(name_of(self._source), str(error)) from error

    def _refuse_unstated_turn(self) -> None:
        with opened(self._source) as (container, _):
            self._turn_is_stated = may_be_turned(self._source, container)
        if not self._turn_is_stated:
            reason = "its rotation is stated in its coded pictures alone; write it to the file"
            raise BrokenVideoError(name_of(self._source), reason)
