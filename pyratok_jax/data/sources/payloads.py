"""What is stored of a clip: its compressed stream, a re-encoded one, or its frames as images."""

import io
import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.containers import may_be_turned
from pyratok_jax.data.video.display import Orientation, orientation
from pyratok_jax.data.video.files import (
    BrokenVideoError,
    VideoSource,
    clock_of,
    frame_rate,
    is_image,
    iter_frames,
    iter_span,
    name_of,
    opened,
    read_image,
    resize_image,
    span_times,
)
from pyratok_jax.data.video.timeline import gather, land, resampled, tolerance
from pyratok_jax.data.video.writer import VideoWriter
from pyratok_jax.errors import storage_reason

# Mean differences of 255 between thumbnails of a clip's frames and of what was stored of them.
MAX_COPY_ERROR = 1.0
MAX_STORE_ERROR = 12.0
_THUMBNAIL = (36, 64)
MAX_MEDIA_BYTES = 2_000_000_000  # A record, which is a protocol buffer, holds less than 2^31.


@dataclass(frozen=True)
class Payload:
    """The bytes to store, their picture size, and where in them the clip lies.

    `start` and `end` are seconds within the stored media (None: its beginning, its end);
    `seconds` is the length of the stored media, where it is not the clip's.
    """

    media: tuple[bytes, ...]
    height: int
    width: int
    start: float | None = None
    end: float | None = None
    seconds: float | None = None


def clip_payload(
    clip: ClipRecord, size: tuple[int, int], store: str, height: int, crf: int, quality: int
) -> Payload:
    """Encode a clip for storing; equal input gives equal bytes.

    What is stored is read back and compared with the source. Packets that cannot be copied
    exactly are decoded and encoded. Frames that are stored already are what is taken, never the
    file that they came from; "bytes" keeps them as they are.

    Args:
        clip: a record whose file or stored frames can be decoded.
        size: (height, width) of its pictures.
        store: "bytes", "reencode" or "frames".
        height: the short side to shrink to, for the latter two (0: keep the size).
        crf: H.264 quality of "reencode".
        quality: JPEG quality of "frames".

    Raises:
        BrokenVideoError: unreadable, or what was stored does not show the source's frames.
    """
    whole = clip.start is None and clip.end is None
    if store == "bytes" or (clip.still and store == "reencode"):
        if clip.stored is not None:
            return Payload(clip.stored, *size)
        if clip.still or whole:
            return Payload((_file_bytes(clip.media),), *size)
        turned = _is_turned(clip.media)  # Matroska would lose the display matrix.
        copied = None if turned else remux(clip.media, clip.start or 0.0, clip.end)
        if copied is not None:
            data, start, end, seconds = copied
            payload = Payload((data,), *size, start=start, end=end, seconds=seconds)
            if _difference(payload, _thumbnails(clip), MAX_COPY_ERROR) is None:
                return payload
        payload = Payload((_encoded(steady_frames(clip), clock_of(clip.media)[0], crf),), *size)
    else:
        target = _shrunk(size, height)
        fitting = (
            f if f.shape[:2] == target else resize_image(f, target) for f in steady_frames(clip)
        )
        if store == "frames":
            payload = Payload(tuple(_jpeg(frame, quality) for frame in fitting), *target)
        else:
            payload = Payload((_encoded(fitting, _rate(clip), crf),), *target)
    reason = _difference(payload, steady_frames(clip, _THUMBNAIL), MAX_STORE_ERROR)
    if reason is not None:
        raise BrokenVideoError(clip.path, reason)
    return payload


def _rate(clip: ClipRecord) -> float:
    return clip.stored_fps if clip.stored is not None else clock_of(clip.media)[0]


def _thumbnails(clip: ClipRecord) -> Iterator[np.ndarray]:
    if clip.stored is not None:
        return (resize_image(read_image(image), _THUMBNAIL) for image in clip.stored)
    return (frame for _, frame in iter_span(clip.media, clip.start, clip.end, _THUMBNAIL))


def _difference(payload: Payload, wanted: Iterator[np.ndarray], limit: float) -> str | None:
    """Read back what is to be stored: in which way it differs from what was wanted, if at all."""
    path = "stored.png" if is_image(payload.media[0]) else "stored.mkv"
    kept = payload.media if len(payload.media) > 1 or is_image(payload.media[0]) else None
    stored = ClipRecord(
        "", path, start=payload.start, end=payload.end, data=payload.media[0], stored=kept
    )
    frames = 0
    worst = 0.0
    try:
        for pair in itertools.zip_longest(wanted, _thumbnails(stored)):
            if pair[0] is None or pair[1] is None:
                more = "fewer" if pair[1] is None else "more"
                return f"what was stored has {more} frames than the clip, which are to be equal"
            frames += 1
            worst = max(worst, float(np.abs(pair[0].astype(np.float32) - pair[1]).mean()))
    except BrokenVideoError as error:
        return f"what was stored cannot be read back: {error.reason}"
    if worst > limit:
        return f"what was stored differs from the clip by {worst:.1f} of 255 (at most {limit:g})"
    return None


def remux(
    source: VideoSource, start: float, end: float | None
) -> tuple[bytes, float, float | None, float] | None:
    """Copy the packets of a span, without decoding, from the key frame before it.

    Returns:
        A Matroska file, the seconds in it at which the span starts and ends (None: its end), and
        its length in seconds. None where packets cannot be copied exactly: decode and encode.

    Raises:
        BrokenVideoError: unreadable.
    """
    target = io.BytesIO()
    with opened(source) as (container, stream):
        margin = tolerance(stream, frame_rate(source, container, stream))
        landed = land(container, stream, start + margin)
        if landed is None:
            return None
        origin, key, rest = landed
        tick = float(stream.time_base)
        low, high = (float("inf") if t is None else origin + t / tick for t in (start, end))
        packets = gather(container, key, rest, high)
        if packets is None:
            return None
        # Pictures shown before the key frame refer to what is left out.
        packets = [p for p in packets if p.pts >= key.pts]
        last = max(i for i, p in enumerate(packets) if i == 0 or p.pts < high - margin / tick)
        packets = packets[: last + 1]
        stamps = sorted(p.pts for p in packets)
        begins = [s for s in stamps if low - margin / tick <= s < high - margin / tick]
        first = begins[0] if begins else max((s for s in stamps if s <= low), default=stamps[0])
        length = max(p.pts + (p.duration or 0) for p in packets) - key.pts
        at, until = (first - key.pts) * tick, (high - key.pts) * tick
        if not _mux(target, stream, packets, key.pts):
            return None
    return target.getvalue(), at, None if end is None else until, length * tick


def _mux(target: io.BytesIO, stream: Any, packets: list[Any], origin: int) -> bool:
    """Write packets as Matroska, shown from 0 on; False where it does not take the codec."""
    stamps = sorted(packet.pts for packet in packets)
    if any(packet.dts is None for packet in packets):
        # Matroska stores no decoding times: ascending ones, none after its presentation time.
        delay = max(stamp - p.pts for stamp, p in zip(stamps, packets, strict=True))
        times = [stamp - delay for stamp in stamps]
    else:
        times = [packet.dts for packet in packets]
    # Muxers write random identifiers and dates unless they are told to be exact.
    options = {"fflags": "+bitexact"}
    try:
        with av.open(target, "w", format="matroska", container_options=options) as out:
            copy = out.add_stream_from_template(stream, opaque=True)
            for packet, time in zip(packets, times, strict=True):
                packet.pts, packet.dts = packet.pts - origin, time - origin
                packet.stream = copy
                out.mux(packet)
    except (ValueError, av.error.FFmpegError):
        return False
    return True


def _file_bytes(media: VideoSource) -> bytes:
    from etils import epath

    if isinstance(media, bytes):
        return media
    try:
        file = epath.Path(media)
        if (size := file.stat().length) > MAX_MEDIA_BYTES:
            reason = f"its {size} bytes are more than {MAX_MEDIA_BYTES}; cut it (--clip-seconds)"
            raise BrokenVideoError(name_of(media), reason)
        return file.read_bytes()
    except OSError as error:
        raise BrokenVideoError(name_of(media), error.strerror or str(error)) from error
    except Exception as error:
        if (failure := storage_reason(error)) is None:
            raise
        raise BrokenVideoError(name_of(media), failure, transient=True) from error


def _shrunk(size: tuple[int, int], height: int) -> tuple[int, int]:
    """The size whose short side is `height`, with even sides; never larger than `size`."""
    if not height or min(size) <= height:
        return size
    scale = height / min(size)
    return max(2 * round(size[0] * scale / 2), 2), max(2 * round(size[1] * scale / 2), 2)


def _is_turned(media: VideoSource) -> bool:
    with opened(media) as (container, stream):
        if not may_be_turned(media, container):
            return False
        frame = next(container.decode(stream), None)
        return frame is not None and orientation(frame) != Orientation()


def clip_frames(clip: ClipRecord) -> Iterator[np.ndarray]:
    """All frames of a clip in order, uint8 (h, w, 3), without holding them.

    Raises:
        BrokenVideoError: unreadable, in whole or from some frame on.
    """
    if clip.stored is not None:
        yield from (read_image(image) for image in clip.stored)
    elif clip.still:
        yield from iter_frames(clip.media)
    else:
        yield from (frame for _, frame in iter_span(clip.media, clip.start, clip.end))


def steady_frames(clip: ClipRecord, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
    """The frames of a video clip at its constant rate, for stores that keep no times.

    All of them where frame n begins within half a frame of n / rate; else the frame shown at each
    n / rate, so that seconds stay true.

    Args:
        clip: which; stored frames are taken as they are.
        size: (height, width) of the result (None: the video's own).

    Raises:
        BrokenVideoError: unreadable.
    """
    if clip.stored is not None:
        images = map(read_image, clip.stored)
        yield from images if size is None else (resize_image(image, size) for image in images)
        return
    if clip.still:
        yield from (frame for _, frame in iter_span(clip.media, size=size))
        return
    rate, margin = clock_of(clip.media)
    times = span_times(clip.media, clip.start, clip.end)
    timed = iter_span(clip.media, clip.start, clip.end, size)
    late = max(abs(time - times[0] - n / rate) for n, time in enumerate(times))
    if late <= 0.5 / rate + margin:
        yield from (frame for _, frame in timed)
    else:
        yield from resampled(timed, rate, margin, 1 / rate)


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "JPEG", quality=quality, subsampling=0)
    return data.getvalue()


def _encoded(frames: Iterator[np.ndarray], fps: float, crf: int) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(os.path.join(scratch, "clip.mp4"))
        with VideoWriter(path, fps=fps, crf=crf, reproducible=True) as writer:
            for frame in frames:
                writer.write(frame)
        return path.read_bytes()
