"""Still images: read as a viewer shows them, and resized."""

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pyratok_jax.data.video import opening
from pyratok_jax.data.video.display import opaque
from pyratok_jax.data.video.opening import (
    BrokenVideoError,
    VideoSource,
    check_regular,
    is_remote,
    name_of,
)
from pyratok_jax.errors import storage_reason
from pyratok_jax.io.remote import open_path

# Pillow knows others that start further programs (EPS) or name further files.
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM")
MAX_PICTURE_BYTES = 1 << 29


def _bytes_of(path: VideoSource) -> bytes:
    if isinstance(path, bytes):
        return path
    check_regular(path)
    file = open_path(path)
    size = file.stat().length
    if size > MAX_PICTURE_BYTES:
        reason = f"its {size} bytes are more than {MAX_PICTURE_BYTES}, it is no picture"
        raise BrokenVideoError(name_of(path), reason)
    return file.read_bytes()


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One uint8 (h, w, 3) image resized to (height, width) with an anti-aliased bicubic filter."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


def read_image(path: VideoSource) -> np.ndarray:
    """A still image as uint8 (h, w, 3): grey, palette, 16-bit and transparent ones are converted.

    Transparent ones are shown over `display.BACKGROUND`.

    Raises:
        BrokenVideoError: missing or not an image.
    """
    with open_picture(path) as image:
        if image.mode.startswith("I"):  # PIL clips 16-bit grey at 255 instead of scaling it.
            grey = np.asarray(image).astype(np.float64) / 257.0
            return np.repeat(np.rint(grey)[..., None], 3, axis=-1).astype(np.uint8)
        return np.asarray(opaque(image))


@contextlib.contextmanager
def open_picture(path: VideoSource) -> Iterator[Image.Image]:
    """A still image, turned by its EXIF orientation, in the mode that it is stored in.

    Raises:
        BrokenVideoError: missing, too large, or not an image; also for what decoding it raises.
    """
    name = name_of(path)
    try:
        with Image.open(io.BytesIO(_bytes_of(path)), formats=_FORMATS) as stored:
            if stored.width * stored.height > opening.MAX_PIXELS:
                size = f"{stored.width}x{stored.height}"
                raise BrokenVideoError(
                    name, f"its {size} pixels are more than {opening.MAX_PIXELS}"
                )
            yield ImageOps.exif_transpose(stored)
    except FileNotFoundError as error:
        raise BrokenVideoError(name, "no such file", is_remote(path)) from error
    except UnidentifiedImageError as error:
        raise BrokenVideoError(name, f"not an image of {', '.join(_FORMATS)}") from error
    except (
        OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError,
        AttributeError, OverflowError, struct.error, zlib.error, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        # All of these are raised by Pillow for damaged files.
        raise BrokenVideoError(name, f"not an image ({error})") from error
    except Exception as error:
        reason = storage_reason(error) if is_remote(path) else None
        if reason is None:
            raise
        raise BrokenVideoError(name, reason, transient=True) from error
