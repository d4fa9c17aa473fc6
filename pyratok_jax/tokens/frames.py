"""The frames of a clip as the exporter encodes them: at a rate and size, one by one."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pyratok_jax.data.sources.payloads import clip_frames
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import BrokenVideoError, is_image, probe, resize_image


@dataclass(frozen=True)
class ClipStream:
    """Frames uint8 (height, width, 3), read once, and their rate."""

    frames: Iterator[np.ndarray]
    fps: float


def open_clip(record: ClipRecord, fps: float = 0.0, short_side: int = 0) -> ClipStream:
    """Begin to read a clip.

    Args:
        record: which.
        fps: frames per second to keep, by leaving out frames; 0, or a rate that the clip does not
            reach: all frames.
        short_side: pixels that the shorter side is shrunk to; 0: never.

    Raises:
        BrokenVideoError: unreadable; also later, while frames are taken from the stream, and when
            the clip has no frame or frames of several sizes.
    """
    rate = record.fps or 1.0
    if record.stored is None and not is_image(record.path):
        rate = probe(record.media).fps
    frames = clip_frames(record)
    if fps and fps < rate:
        frames, rate = _thinned(frames, rate, fps), fps
    return ClipStream(_uniform(frames, record.path, short_side), rate)


def _thinned(frames: Iterator[np.ndarray], rate: float, fps: float) -> Iterator[np.ndarray]:
    """Of every 1 / fps seconds the frame shown at their beginning."""
    kept = 0
    for number, frame in enumerate(frames):
        # Frame `number` is shown until (number + 1) / rate.
        if kept * rate < (number + 1 - 1e-6) * fps:
            kept += 1
            yield frame


def _uniform(frames: Iterator[np.ndarray], path: str, short_side: int) -> Iterator[np.ndarray]:
    shape: tuple[int, ...] | None = None
    for frame in frames:
        if shape is None:
            shape = frame.shape
            target = _target(shape[0], shape[1], short_side)
        if frame.shape != shape:
            raise BrokenVideoError(path, f"its frames change size: {shape} to {frame.shape}")
        yield frame if target == shape[:2] else resize_image(frame, target)
    if shape is None:
        raise BrokenVideoError(path, "it holds no frame")


def _target(height: int, width: int, short_side: int) -> tuple[int, int]:
    if not short_side or min(height, width) <= short_side:
        return height, width
    scale = short_side / min(height, width)
    return max(round(height * scale), short_side), max(round(width * scale), short_side)
