"""The contact sheet: every clip's videos as still pictures on one PNG."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pyratok_jax.metrics.image import frame_errors, psnr_of
from pyratok_jax.reports.clips import ReportClip
from pyratok_jax.reports.pictures import fit_within

_TILE, _GAP, _MARGIN, _LINE = 192, 8, 24, 19
_INK, _FAINT, _PAPER = (24, 27, 31), (104, 112, 122), (255, 255, 255)


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


def save_png(image: Image.Image, path: str | os.PathLike) -> Path:
    """Write a picture atomically."""
    path = Path(path)
    scratch = path.parent / f".{path.name}.part"
    image.save(scratch, "PNG")
    os.replace(scratch, path)
    return path


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
    labels = _labels(clip)
    for column, (name, video) in enumerate(videos.items()):
        draw.text((column * step, top - _LINE), labels.get(name, name), _FAINT, _font(12))
        for row, frame in enumerate(video):
            block.paste(Image.fromarray(frame), (column * step, top + row * (tile_h + _GAP)))
    return block


def _labels(clip: ReportClip) -> dict[str, str]:
    labels = {}
    for name, video in clip.decoded().items():
        psnr = float(np.mean(psnr_of(frame_errors(clip.original, video))))
        labels[name] = f"{name} {psnr:.1f} dB"
    return labels


def _tile_sized(video: np.ndarray) -> np.ndarray:
    """Shrunk by averaging, or enlarged by whole factors, so that pixels and tokens stay sharp."""
    video = fit_within(video, _TILE)
    factor = max(_TILE // max(video.shape[1:3]), 1)
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib; Pillow's own lacks most letters."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
