"""Clips as the model takes them: windows of frames, padded to its sizes, scaled to [-1, 1].

A clip of any length and size is extended by repeating its last frame up to 1 + a multiple of the
VAE's temporal factor, and by repeating its right and bottom edge up to the needed multiple.
`Padding` travels with the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

if TYPE_CHECKING:
    # At run time it would import JAX, which readers of token files need not have loaded.
    from jaxtyping import Array


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

    @property
    def pixels(self) -> int:
        """Pixels of the true clip, over all its frames."""
        return self.frames * self.height * self.width


def padding_for(
    frames: int, height: int, width: int, *, temporal_factor: int, spatial_multiple: int
) -> Padding:
    """The smallest valid size that holds a clip of frames x height x width (all at least 1).

    Args:
        frames, height, width: of the clip.
        temporal_factor: frames per latent frame; the padded clip has 1 + a multiple of it.
        spatial_multiple: what padded sides are multiples of.

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
    video: np.ndarray, *, temporal_factor: int, spatial_multiple: int
) -> tuple[np.ndarray, Padding]:
    """Pad a clip (t, h, w, c) of any dtype; see `padding_for`.

    Raises:
        ValueError: an empty clip, or not four axes.
    """
    if video.ndim != 4:
        raise ValueError(f"expected a clip (t, h, w, c), got shape {video.shape}")
    padding = padding_for(
        *video.shape[:3], temporal_factor=temporal_factor, spatial_multiple=spatial_multiple
    )
    return pad_to(video, padding), padding


def pad_to(video: np.ndarray, padding: Padding) -> np.ndarray:
    """A clip (..., t, h, w, c) of the true size, extended to the padded one."""
    widths = (
        (0, padding.padded_frames - padding.frames),
        (0, padding.padded_height - padding.height),
        (0, padding.padded_width - padding.width),
        (0, 0),
    )
    return np.pad(video, ((0, 0),) * (video.ndim - 4) + widths, mode="edge")


def crop_clip(video: np.ndarray, padding: Padding) -> np.ndarray:
    """Undo `pad_clip` on (..., t, h, w, c).

    Raises:
        ValueError: a clip that does not have the padded size.
    """
    expected = (padding.padded_frames, padding.padded_height, padding.padded_width)
    if video.shape[-4:-1] != expected:
        raise ValueError(f"expected a clip of {expected}, got {video.shape[-4:-1]}")
    return video[..., : padding.frames, : padding.height, : padding.width, :]


def cut_windows(
    frames: Iterable[np.ndarray], length: int, later: int | None = None
) -> Iterator[np.ndarray]:
    """Consecutive frames (h, w, c) stacked to (t, h, w, c); one window is held in memory.

    Args:
        frames: all of one size.
        length: frames of the first window.
        later: frames of every later one; None: as many. The last may have fewer.
    """
    held: list[np.ndarray] = []
    for frame in frames:
        held.append(frame)
        if len(held) == length:
            yield np.stack(held)
            held, length = [], later or length
    if held:
        yield np.stack(held)


def to_model_range(video: Shaped[Array | np.ndarray, "*n"]) -> Float[Any, "*n"]:
    """Pixels 0 .. 255 (of NumPy or JAX) to float32 in [-1, 1], the scale of every model's input."""
    return video.astype(np.float32) / 127.5 - 1.0
