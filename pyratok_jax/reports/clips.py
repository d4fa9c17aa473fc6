"""Clips of a report: the videos shown beside each other, and the contact sheet of all clips."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pyratok_jax.metrics.image import frame_errors, psnr_of
from pyratok_jax.reports.pictures import error_map, fit_within

_TILE, _GAP, _MARGIN, _LINE = 192, 8, 24, 19  # Pixels of the contact sheet.
_INK, _FAINT, _PAPER = (24, 27, 31), (104, 112, 122), (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class ReportClip:
    """A clip and what became of it; all videos are uint8 (t, h, w, 3) of one shape.

    Attributes:
        name: short, unique within the report.
        caption: the text it was encoded with; None or empty where there was none.
        fps: frames per second.
        original: the input.
        reconstruction: of the trained tokenizer.
        ceiling: of the frozen VAE without quantisation; None leaves it out.
        step0: of the same model before training; None leaves it out.
        token_maps: one video per level (`pictures.token_maps`), cropped like the others.
        levels: what to call each level; "level 1" and so on where empty.
        more: further reconstructions by what they are called, such as those of the first levels.
    """

    name: str
    caption: str | None
    fps: float
    original: np.ndarray
    reconstruction: np.ndarray
    ceiling: np.ndarray | None = None
    step0: np.ndarray | None = None
    token_maps: Sequence[np.ndarray] = ()
    levels: Sequence[str] = ()
    more: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.levels and len(self.levels) != len(self.token_maps):
            raise ValueError(
                f"clip {self.name}: {len(self.levels)} names for {len(self.token_maps)} levels"
            )
        shape = self.original.shape
        for name, video in self.videos().items():
            if video.dtype != np.uint8 or video.shape != shape or len(shape) != 4:
                raise ValueError(
                    f"clip {self.name}: {name} is {video.dtype} {video.shape}; expected uint8 "
                    f"(t, h, w, 3), all of one shape, the original being {shape}"
                )

    def decoded(self) -> dict[str, np.ndarray]:
        """The versions of the clip whose quality is compared, by what they are called."""
        videos = {
            "reconstruction": self.reconstruction,
            "ceiling": self.ceiling,
            "at step 0": self.step0,
        }
        return {name: video for name, video in videos.items() if video is not None} | dict(
            self.more
        )

    def psnr(self) -> dict[str, float]:
        """PSNR in dB of every decoded version, mean over frames."""
        return {
            name: float(np.mean(psnr_of(frame_errors(self.original, video))))
            for name, video in self.decoded().items()
        }

    def level_videos(self) -> dict[str, np.ndarray]:
        """Token maps by the name of their level."""
        names = self.levels or [f"level {i + 1}" for i in range(len(self.token_maps))]
        return dict(zip(names, self.token_maps, strict=True))

    def videos(self) -> dict[str, np.ndarray]:
        """Everything that is shown, in reading order."""
        decoded = self.decoded()
        shown = {"input": self.original, "reconstruction": decoded.pop("reconstruction")}
        if self.original.shape == self.reconstruction.shape:
            shown["error"] = error_map(self.original, self.reconstruction)
        return shown | decoded | self.level_videos()


def contact_sheet(title: str, clips: Sequence[ReportClip], frames: int = 3) -> Image.Image:
    """Rows of the first, middle and last frame of each clip, a column for each of its videos."""
    blocks = [_block(clip, frames) for clip in clips]
    width = max([block.width for block in blocks] + [3 * _TILE]) + 2 * _MARGIN
    heading = 2 * _MARGIN + _LINE
    height = heading + sum(block.height + _MARGIN for block in blocks)
    sheet = Image.new("RGB", (width, height), _PAPER)
    ImageDraw.Draw(sheet).text((_MARGIN, _MARGIN), title, _INK, _font(18, bold=True))
    top = heading
    for block in blocks:
        sheet.paste(block, (_MARGIN, top))
        top += block.height + _MARGIN
    return sheet


def _block(clip: ReportClip, frames: int) -> Image.Image:
    """One clip: its name and caption, labels, then a row per chosen frame."""
    chosen = np.unique(np.linspace(0, len(clip.original) - 1, frames).round().astype(int))
    videos = {name: _tile_sized(video[chosen]) for name, video in clip.videos().items()}
    tile_h, tile_w = next(iter(videos.values())).shape[1:3]
    step = max(tile_w, 150) + _GAP
    width = len(videos) * step
    lines = textwrap.wrap(clip.caption or "no caption", max(width // 8, 20), max_lines=2)
    top = _LINE * (2 + len(lines)) + _GAP
    block = Image.new("RGB", (width, top + len(chosen) * (tile_h + _GAP)), _PAPER)
    draw = ImageDraw.Draw(block)
    t, h, w = clip.original.shape[:3]
    heading = f"{clip.name}   {t} frames, {w} x {h}, {clip.fps:.4g} fps"
    draw.text((0, 0), heading, _INK, _font(14, bold=True))
    for number, line in enumerate(lines, start=1):
        draw.text((0, number * _LINE), line, _FAINT, _font(13))
    labels = {name: f"{name} {psnr:.1f} dB" for name, psnr in clip.psnr().items()}
    for column, (name, video) in enumerate(videos.items()):
        draw.text((column * step, top - _LINE), labels.get(name, name), _FAINT, _font(12))
        for row, frame in enumerate(video):
            block.paste(Image.fromarray(frame), (column * step, top + row * (tile_h + _GAP)))
    return block


def _tile_sized(video: np.ndarray) -> np.ndarray:
    """Shrunk by averaging, or enlarged by whole factors, so that pixels and tokens stay sharp."""
    video = fit_within(video, _TILE)
    factor = max(_TILE // max(video.shape[1:3]), 1)
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib; Pillow's own lacks most letters."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
