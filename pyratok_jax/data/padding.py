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

    def pad(self, video: np.ndarray) -> np.ndarray:
        """A clip (..., t, h, w, c) of the true size, extended by repeating its edges."""
        widths = (
            (0, self.padded_frames - self.frames),
            (0, self.padded_height - self.height),
            (0, self.padded_width - self.width),
            (0, 0),
        )
        return np.pad(video, ((0, 0),) * (video.ndim - 4) + widths, mode="edge")

    def crop(self, video: np.ndarray) -> np.ndarray:
        """Undo `pad`.

        Raises:
            ValueError: a clip that does not have the padded size.
        """
        expected = (self.padded_frames, self.padded_height, self.padded_width)
        if video.shape[-4:-1] != expected:
            raise ValueError(f"expected a clip of {expected}, got {video.shape[-4:-1]}")
        return video[..., : self.frames, : self.height, : self.width, :]


@dataclass(frozen=True)
class ClipSizes:
    """Which sizes of clips a tokenizer takes, and how others are padded.

    Attributes:
        temporal_factor: frames per latent frame; padded clips have 1 + a multiple of it.
        spatial_multiple: what padded sides are multiples of.
    """

    temporal_factor: int
    spatial_multiple: int

    def padding(self, frames: int, height: int, width: int) -> Padding:
        """The smallest valid size that holds a clip of frames x height x width.

        Raises:
            ValueError: an empty clip.
        """
        if min(frames, height, width) < 1:
            raise ValueError(f"a clip of {frames}x{height}x{width} is empty")
        return Padding(
            frames,
            height,
            width,
            1 + self.temporal_factor * -(-(frames - 1) // self.temporal_factor),
            self.spatial_multiple * -(-height // self.spatial_multiple),
            self.spatial_multiple * -(-width // self.spatial_multiple),
        )

    def pad(self, video: np.ndarray) -> tuple[np.ndarray, Padding]:
        """A clip or batch (..., t, h, w, c) of any dtype, extended by repeating its edges.

        Raises:
            ValueError: an empty clip, or fewer than four axes.
        """
        if video.ndim < 4:
            raise ValueError(f"expected clips (..., t, h, w, c), got shape {video.shape}")
        padding = self.padding(*video.shape[-4:-1])
        return padding.pad(video), padding


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
