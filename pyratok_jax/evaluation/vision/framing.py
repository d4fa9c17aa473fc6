"""How evaluation clips are cut and resized: even sampling over time, a shorter side of n pixels."""

import numpy as np

from pyratok_jax.data.video.files import VideoSource, iter_frames, probe, resize_image
from pyratok_jax.evaluation.framework import BrokenItemError


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

    Frames are counted by decoding, so that their numbers are exact whatever the header says; only
    those that are taken are kept.

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
    info = probe(path)
    first = round((start or 0.0) * info.fps)
    last = None if end is None else max(round(end * info.fps), first + 1)
    total = max((info.frames if last is None else last) - first, 1)
    for _ in range(2):  # A second time where the header was wrong about the length.
        wanted, found, number = even_indices(total, count), {}, -1
        for number, frame in enumerate(iter_frames(path, first, last)):
            if number in wanted:
                found[number] = resized(frame, side)
        if number + 1 == total:
            break
        total = number + 1
        if not total:
            raise BrokenItemError(f"there is no frame between {start} s and {end} s")
    return np.stack([found[i] for i in wanted])


def even_indices(available: int, count: int) -> list[int]:
    """Numbers of the frames in the middles of `count` equal parts of `available` frames."""
    return [int((i + 0.5) * available / count) for i in range(count)]
