"""Films for pages: several videos tiled into one, so that a browser plays them in step."""

import base64
import dataclasses
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
from PIL import Image

from pyratok_jax.data.video.files import VideoWriter
from pyratok_jax.reports.pictures import fit_within

_LONGEST_SIDE = 480
# H.264 codes blocks of 16 pixels; panels that start on one do not bleed into each other.
_BLOCK = 16
_CRF = 16


@dataclasses.dataclass(frozen=True)
class Panel:
    """Where a video lies within a film, in pixels."""

    name: str
    left: int
    top: int
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Film:
    """One compressed film of several panels.

    `mime` is video/mp4, or image/webp (animated) where no H.264 encoder is at hand.
    """

    data: bytes
    mime: str
    fps: float
    frames: int
    width: int
    height: int
    panels: tuple[Panel, ...]

    @property
    def url(self) -> str:
        """The film as a data URL."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"


def make_film(videos: Mapping[str, np.ndarray], fps: float) -> Film:
    """Tile videos of one size and length into a film.

    Large ones are shrunk to a longest side of 480; small ones are doubled, which keeps colours
    sharp although H.264 in browsers halves their resolution.

    Args:
        videos: uint8 (t, h, w, 3) by name, in the order of the panels.
        fps: frames per second.

    Raises:
        ValueError: no video, or unequal shapes.
    """
    shapes = {video.shape for video in videos.values()}
    if len(shapes) != 1:
        raise ValueError(f"a film needs videos of one shape, got {sorted(shapes)}")
    scaled = [_scaled(video) for video in videos.values()]
    t, height, width = scaled[0].shape[:3]
    columns = int(np.ceil(np.sqrt(len(scaled))))
    rows = -(-len(scaled) // columns)
    cell_h, cell_w = (_BLOCK * -(-side // _BLOCK) for side in (height, width))
    canvas = np.zeros((t, rows * cell_h, columns * cell_w, 3), np.uint8)
    panels = []
    for number, (name, video) in enumerate(zip(videos, scaled, strict=True)):
        top, left = number // columns * cell_h, number % columns * cell_w
        widths = ((0, 0), (0, cell_h - height), (0, cell_w - width), (0, 0))
        canvas[:, top : top + cell_h, left : left + cell_w] = np.pad(video, widths, mode="edge")
        panels.append(Panel(name, left, top, width, height))
    data, mime = compress(canvas, fps)
    return Film(data, mime, fps, t, canvas.shape[2], canvas.shape[1], tuple(panels))


def _scaled(video: np.ndarray) -> np.ndarray:
    video = fit_within(video, _LONGEST_SIDE)
    if 2 * max(video.shape[1:3]) <= _LONGEST_SIDE:
        return video.repeat(2, axis=1).repeat(2, axis=2)
    return video


def compress(video: np.ndarray, fps: float) -> tuple[bytes, str]:
    """A video (t, h, w, 3) with even sides as bytes and their MIME type: H.264, else WebP."""
    if "libx264" not in av.codecs_available:
        return _animated_picture(video, fps), "image/webp"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        with VideoWriter(path, fps=fps, crf=_CRF) as writer:
            for frame in video:
                writer.write(frame)
        return path.read_bytes(), "video/mp4"


def _animated_picture(video: np.ndarray, fps: float) -> bytes:
    first, *rest = (Image.fromarray(frame) for frame in video)
    data = io.BytesIO()
    settings = {"duration": round(1000 / fps), "loop": 0, "quality": 85}
    first.save(data, "WEBP", save_all=True, append_images=rest, **settings)
    return data.getvalue()
