"""How evaluation clips are cut and resized: even sampling over time, a shorter side of n pixels."""

import numpy as np

from pyratok_jax.data.videos import VideoSource, iter_frames, probe, resize_image
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

    The video is read from its beginning, so that frame numbers are exact whatever its header says.

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
    fps = probe(path).fps
    first = round((start or 0.0) * fps)
    last = None if end is None else max(round(end * fps), first + 1)
    frames = [resized(frame, side) for frame in iter_frames(path, first, last)]
    if not frames:
        raise BrokenItemError(f"there is no frame between {start} s and {end} s")
    return np.stack([frames[i] for i in even_indices(len(frames), count)])


def even_indices(available: int, count: int) -> list[int]:
    """Numbers of the frames in the middles of `count` equal parts of `available` frames."""
    return [int((i + 0.5) * available / count) for i in range(count)]
