"""The one description of a clip that all sources produce."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from pyratok_jax.data.video.files import VideoSource, is_image

# Frames per second of stored frames whose source states none.
DEFAULT_FPS = 25.0


class Drawing(Protocol):
    """A clip that is drawn on demand, at any size, in place of being decoded from a file."""

    def draw(self, frames: int, height: int, width: int) -> UInt8[np.ndarray, "t h w 3"]:
        """The whole clip in n frames of that size; equal arguments give equal bytes."""
        ...

    def encoded(self) -> bytes:
        """The clip as a video file, for what reads files."""
        ...


@dataclass(frozen=True)
class ClipRecord:
    """One clip: where it is and what it shows.

    `id` is unique within its source. `path` is a local or remote file, or names the record of a
    shard whose content is in `data` (the compressed file) or `stored` (each frame as the bytes of
    an image file). `start` and `end` are seconds within the file (None: its beginning, its end).
    `width`, `height`, `seconds` (of the file) and `fps` are given where the source states them,
    so that the file need not be opened to assign the clip to a bucket. A procedural clip has
    `drawing` in place of a file.
    """

    id: str
    path: str
    caption: str | None = None
    start: float | None = None
    end: float | None = None
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    fps: float | None = None
    data: bytes | None = field(default=None, repr=False)
    stored: tuple[bytes, ...] | None = field(default=None, repr=False, compare=False)
    drawing: Drawing | None = field(default=None, repr=False)

    @property
    def media(self) -> VideoSource:
        """What to decode: the compressed bytes, or the path; stored frames are in `stored`."""
        if self.drawing is not None:
            return self.drawing.encoded()
        return self.path if self.data is None else self.data

    @property
    def still(self) -> bool:
        """Whether it is a picture, which has no length; a video of one frame is none."""
        if self.stored is not None:
            return len(self.stored) == 1 and self.seconds is None
        return self.drawing is None and is_image(self.path)

    @property
    def stored_fps(self) -> float:
        """Frames per second of a picture or of stored frames, which have no file that states it."""
        return self.fps or (1.0 if self.still else DEFAULT_FPS)

    @property
    def span(self) -> float | None:
        """Length of the clip in seconds, where known."""
        end = self.end if self.end is not None else self.seconds
        return None if end is None else max(end - (self.start or 0.0), 0.0)
