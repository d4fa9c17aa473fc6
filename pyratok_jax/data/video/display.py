"""From a decoded frame to what a player shows: orientation, square pixels, colour, background.

Colours follow the matrix and range that the stream states. Where it states none, BT.709 is
taken for sizes above 1279x576 and BT.601 below, in limited range, as players do. HDR is refused.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image

BACKGROUND = 255  # White: what transparent pixels are shown over.

# ITU-T H.273 matrix coefficients to those of swscale. 0 is RGB, 2 is not stated.
_MATRICES = {
    1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M, 9: Colorspace.BT2020,
}  # fmt: skip
_HDR = {16: "PQ", 18: "HLG"}  # Transfer characteristics of ITU-T H.273.
_WIDE = {9: "BT.2020", 10: "XYZ", 11: "DCI-P3", 12: "Display P3"}  # Colour primaries, likewise.
_RGB, _NOT_STATED, _FULL = 0, (2, 3), 2
# What only HDR is accompanied by, where nothing else states the transfer characteristics.
_HDR_SIDE_DATA = {
    "MASTERING_DISPLAY_METADATA": "mastering display", "CONTENT_LIGHT_LEVEL": "light level",
    "DYNAMIC_HDR_PLUS": "HDR10+", "DYNAMIC_HDR_VIVID": "HDR Vivid",
    "DOVI_RPU_BUFFER": "Dolby Vision", "DOVI_METADATA": "Dolby Vision",
}  # fmt: skip


class UnshowableError(ValueError):
    """Frames that cannot be shown as a player shows them; what of them is in the message."""


def unshowable(matrix: int, transfer: int, primaries: int) -> str | None:
    """Why frames of this colour cannot be shown (None: they can), by the codes of H.273."""
    if transfer in _HDR:
        return f"its colours are HDR ({_HDR[transfer]}); convert it to SDR (BT.709) first"
    if primaries in _WIDE:
        return f"its colours are of a wide gamut ({_WIDE[primaries]}); convert it to BT.709 first"
    if matrix not in _MATRICES and matrix != _RGB and matrix not in _NOT_STATED:
        return f"its colour matrix (code {matrix} of ITU-T H.273) is not supported"
    return None


def _hdr_by_side_data(frame: VideoFrame) -> str | None:
    stated = frame.side_data
    kind = next((kind for key, kind in _HDR_SIDE_DATA.items() if stated.get(key)), None)
    return kind and f"its colours are HDR ({kind} data); convert it to SDR (BT.709) first"


def pixel_aspect(stream: VideoStream) -> Fraction:
    """Width over height of a pixel, as a player shows it (1 where it is not stated or absurd)."""
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return ratio if ratio and Fraction(1, 8) <= ratio <= 8 else Fraction(1)


@dataclass(frozen=True)
class Orientation:
    """How a decoded frame is shown: first its axes are exchanged, then each may be reversed."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def applied(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """The frame as it is shown."""
        if self == Orientation():
            return frame
        frame = frame.transpose(1, 0, 2) if self.transposed else frame
        rows, columns = (-1 if r else 1 for r in (self.rows_reversed, self.columns_reversed))
        return np.ascontiguousarray(frame[::rows, ::columns])


_UPRIGHT = Orientation()
_MOST_SKEW = 0.02  # Of the larger numbers of a display matrix: about one degree.


def orientation(frame: Any) -> Orientation:
    """Of a decoded frame, by its display matrix: quarter turns, mirrored or not.

    Raises:
        UnshowableError: turned by another angle.
    """
    stated = frame.side_data.get("DISPLAYMATRIX")
    if stated is None:
        return _UPRIGHT
    # (x, y) is shown at (a x + c y, b x + d y), ISO 14496-12.
    matrix = np.frombuffer(bytes(stated), "<i4")[:9].tolist()
    if matrix[7] == 1 << 30:  # Some writers begin it one number early: the last lies before.
        matrix = [0, *matrix[:8]]
    a, b, _, c, d = matrix[:5]
    straight, across = max(abs(a), abs(d)), max(abs(b), abs(c))
    if straight and across <= _MOST_SKEW * straight:
        return Orientation(False, d < 0, a < 0)
    if across and straight <= _MOST_SKEW * across:
        return Orientation(True, b < 0, c < 0)
    if not straight and not across:
        return _UPRIGHT
    raise UnshowableError("its display matrix turns it by another angle than quarter turns")


def to_array(
    frame: VideoFrame, aspect: Fraction, size: tuple[int, int] | None, scaler: VideoReformatter
) -> UInt8[np.ndarray, "h w 3"]:
    """A decoded frame as a player shows it: upright, with square pixels, over the background.

    Args:
        frame: PyAV's frame.
        aspect: width over height of its pixels.
        size: (height, width) of the result; None: the frame's, widened to square pixels.
        scaler: one for all frames, which keeps its tables.

    Raises:
        UnshowableError: see `unshowable`.
    """
    reason = unshowable(frame.colorspace, frame.color_trc, frame.color_primaries)
    if reason is None and frame.color_trc in _NOT_STATED:
        reason = _hdr_by_side_data(frame)
    if reason is not None:
        raise UnshowableError(reason)
    turned = orientation(frame)
    if size is None:
        height, width = frame.height, frame.width
        width = width if aspect == 1 else max(round(width * aspect), 1)
    else:
        height, width = size[::-1] if turned.transposed else size
    # Area averaging is FFmpeg's cheapest filter that does not alias when it shrinks.
    way = "BILINEAR" if (height, width) == (frame.height, frame.width) else "AREA"
    transparent = _is_transparent(frame.format)
    array = scaler.reformat(
        frame, width, height, "rgba" if transparent else "rgb24", interpolation=way,
        src_colorspace=_matrix(frame), dst_colorspace=Colorspace.DEFAULT,
        src_color_range=_range(frame), dst_color_range=ColorRange.JPEG,
    ).to_ndarray()  # fmt: skip
    array = over_background(array) if transparent else array
    return turned.applied(array)


def _matrix(frame: VideoFrame) -> Colorspace | None:
    if frame.format.is_rgb:
        return None
    high = frame.width >= 1280 or frame.height > 576
    return _MATRICES.get(frame.colorspace, Colorspace.ITU709 if high else Colorspace.ITU601)


def _range(frame: VideoFrame) -> ColorRange | None:
    if frame.format.is_rgb or frame.format.name.startswith(("yuvj", "gray", "ya", "mono")):
        return None
    return ColorRange.JPEG if frame.color_range == _FULL else ColorRange.MPEG


def _is_transparent(pixels: Any) -> bool:
    name = pixels.name
    return name.startswith(("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya", "pal8"))


def over_background(image: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """An RGBA picture over the background."""
    alpha = image[..., 3:]
    if (alpha == 255).all():
        return np.ascontiguousarray(image[..., :3])
    mixed = image[..., :3].astype(np.uint32) * alpha + BACKGROUND * (255 - alpha.astype(np.uint32))
    return ((mixed + 127) // 255).astype(np.uint8)


def opaque(image: Image.Image) -> Image.Image:
    """A picture in RGB, over the background where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    return Image.fromarray(over_background(np.asarray(image.convert("RGBA"))))
