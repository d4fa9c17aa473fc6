"""What is stored of a clip: its compressed stream, a re-encoded one, or its frames as images."""

import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import (
    BrokenVideoError,
    VideoSource,
    frame_rate,
    is_image,
    iter_frames,
    name_of,
    opened,
    pixel_aspect,
    quarter_turns,
    read_image,
    resize_image,
    to_array,
)
from pyratok_jax.data.video.writer import VideoWriter


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

    Args:
        clip: a record whose file can be decoded.
        size: (height, width) of its pictures.
        store: "bytes", "reencode" or "frames".
        height: the short side to shrink to, for the latter two (0: keep the size).
        crf: H.264 quality of "reencode".
        quality: JPEG quality of "frames".

    Raises:
        BrokenVideoError: unreadable.
    """
    still = is_image(clip.path)
    if store == "bytes" or (still and store == "reencode"):
        if still or (clip.start is None and clip.end is None):
            return Payload((_file_bytes(clip.media),), *size)
        if _is_turned(clip.media):
            # Matroska would lose the display matrix: the span is stored upright.
            frames = clip_frames(clip)
            return Payload((_encoded(frames, _fps(clip.media), crf),), *size)
        data, start, seconds = remux(clip.media, clip.start or 0.0, clip.end)
        length = None if clip.end is None else clip.end - (clip.start or 0.0)
        end = None if length is None else start + length
        return Payload((data,), *size, start=start, end=end, seconds=seconds)
    target = _shrunk(size, height)
    frames = (f if f.shape[:2] == target else resize_image(f, target) for f in clip_frames(clip))
    if store == "frames":
        return Payload(tuple(_jpeg(frame, quality) for frame in frames), *target)
    return Payload((_encoded(frames, _fps(clip.media), crf),), *target)


def remux(source: VideoSource, start: float, end: float | None) -> tuple[bytes, float, float]:
    """Copy the packets of a span, without decoding, from the key frame before it.

    Returns:
        A Matroska file, the seconds in it at which the span starts, and its length in seconds.

    Raises:
        BrokenVideoError: unreadable, or nothing there.
    """
    target = io.BytesIO()
    # Muxers write random identifiers and dates unless they are told to be exact.
    options = {"fflags": "+bitexact"}
    with (
        opened(source) as (container, stream),
        av.open(target, "w", format="matroska", container_options=options) as out,
    ):
        copy = out.add_stream_from_template(stream)
        begin = stream.start_time or 0
        low = begin + int(start / stream.time_base)
        high = None if end is None else begin + int(end / stream.time_base)
        container.seek(low, stream=stream, backward=True)
        packets = _packets(container, stream, high)
        if not packets:
            raise BrokenVideoError(name_of(source), f"no packet at {start:g} s")
        first = min(packet.pts for packet in packets)
        last = max(packet.pts + (packet.duration or 0) for packet in packets)
        for packet in packets:
            packet.pts -= first
            packet.dts -= first
            packet.stream = copy
            out.mux(packet)
        base = float(stream.time_base)
    return target.getvalue(), max((low - first) * base, 0.0), (last - first) * base


def _packets(container: Any, stream: Any, high: int | None) -> list[Any]:
    packets: list[Any] = []
    for packet in container.demux(stream):
        if packet.dts is None or packet.pts is None:
            continue
        # Decoding order never shows a packet before its decoding time: later ones are not needed.
        if high is not None and packet.dts >= high and packets:
            break
        packets.append(packet)
    return packets


def _file_bytes(media: VideoSource) -> bytes:
    from etils import epath

    try:
        return media if isinstance(media, bytes) else epath.Path(media).read_bytes()
    except OSError as error:
        raise BrokenVideoError(name_of(media), error.strerror or str(error)) from error


def _shrunk(size: tuple[int, int], height: int) -> tuple[int, int]:
    """The size whose short side is `height`, with even sides; never larger than `size`."""
    if not height or min(size) <= height:
        return size
    scale = height / min(size)
    return max(2 * round(size[0] * scale / 2), 2), max(2 * round(size[1] * scale / 2), 2)


def _fps(media: VideoSource) -> float:
    with opened(media) as (container, stream):
        return float(frame_rate(container, stream))


def _is_turned(media: VideoSource) -> bool:
    with opened(media) as (container, stream):
        frame = next(container.decode(stream), None)
        return frame is not None and quarter_turns(frame) != 0


def clip_frames(clip: ClipRecord) -> Iterator[np.ndarray]:
    """All frames of a clip in order, uint8 (h, w, 3), without holding them.

    Raises:
        BrokenVideoError: unreadable, in whole or from some frame on.
    """
    if clip.stored is not None:
        yield from (read_image(image) for image in clip.stored)
        return
    if is_image(clip.path) or (clip.start is None and clip.end is None):
        yield from iter_frames(clip.media, threads=1)
        return
    scaler = VideoReformatter()
    with opened(clip.media) as (container, stream):
        begin = float((stream.start_time or 0) * stream.time_base)
        margin = 0.25 / float(frame_rate(container, stream))
        low = begin + (clip.start or 0.0) - margin
        high = float("inf") if clip.end is None else begin + clip.end - margin
        if low > 0:
            container.seek(int(low / stream.time_base), stream=stream, backward=True)
        for frame in container.decode(stream):
            time = low if frame.time is None else frame.time
            if time >= high:
                return
            if time >= low:
                yield to_array(frame, pixel_aspect(stream), None, scaler)


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "JPEG", quality=quality, subsampling=0)
    return data.getvalue()


def _encoded(frames: Iterator[np.ndarray], fps: float, crf: int) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(os.path.join(scratch, "clip.mp4"))
        # One thread: the encoder's output depends on how many it uses.
        with VideoWriter(path, fps=fps, crf=crf, threads=1) as writer:
            for frame in frames:
                writer.write(frame)
        return path.read_bytes()
