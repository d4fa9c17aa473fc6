"""Padding clips to sizes that the backbone takes, and cropping its output back.

A clip of any length and size is extended by repeating its last frame up to 4k + 1 frames, and by
repeating its right and bottom edge up to the needed multiple. `Padding` travels with the tokens.
"""

from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Padding:
    """The true size of a clip and the size it was padded to."""

    frames: int
    height: int
    width: int
    padded_frames: int
    padded_height: int
    padded_width: int

    def to_dict(self) -> dict[str, int]:
        """Plain integers, for JSON."""
        return asdict(self)


def padding_for(
    frames: int, height: int, width: int, *, temporal_factor: int = 4, spatial_multiple: int
) -> Padding:
    """The smallest valid size that holds a clip of frames x height x width (all at least 1).

    Raises:
        ValueError: an empty clip.
    """
    if min(frames, height, width) < 1:
        raise ValueError(f"a clip of {frames}x{height}x{width} is empty")
    return Padding(
        frames,
        height,
        width,
        1 + temporal_factor * -(-(frames - 1) // temporal_factor),
        spatial_multiple * -(-height // spatial_multiple),
        spatial_multiple * -(-width // spatial_multiple),
    )


def pad_clip(
    video: np.ndarray, *, temporal_factor: int = 4, spatial_multiple: int
) -> tuple[np.ndarray, Padding]:
    """Pad a clip (t, h, w, c) of any dtype; frames to `temporal_factor` k + 1.

    Raises:
        ValueError: an empty clip, or not four axes.
    """
    if video.ndim != 4:
        raise ValueError(f"expected a clip (t, h, w, c), got shape {video.shape}")
    padding = padding_for(
        *video.shape[:3], temporal_factor=temporal_factor, spatial_multiple=spatial_multiple
    )
    widths = (
        (0, padding.padded_frames - padding.frames),
        (0, padding.padded_height - padding.height),
        (0, padding.padded_width - padding.width),
        (0, 0),
    )
    return np.pad(video, widths, mode="edge"), padding


def crop_clip(video: np.ndarray, padding: Padding) -> np.ndarray:
    """Undo `pad_clip` on (..., t, h, w, c).

    Raises:
        ValueError: a clip that does not have the padded size.
    """
    expected = (padding.padded_frames, padding.padded_height, padding.padded_width)
    if video.shape[-4:-1] != expected:
        raise ValueError(f"expected a clip of {expected}, got {video.shape[-4:-1]}")
    return video[..., : padding.frames, : padding.height, : padding.width, :]
