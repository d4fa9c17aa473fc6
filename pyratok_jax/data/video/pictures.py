"""Still images: read as a viewer shows them, and resized."""

import io
import struct
import zlib

import numpy as np
from etils import epath
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


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One uint8 (h, w, 3) image resized to (height, width) with an anti-aliased bicubic filter."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


def read_image(path: VideoSource) -> np.ndarray:
    """A still image as uint8 (h, w, 3): grey, palette, 16-bit and transparent ones are converted.

    Transparent ones are shown over `display.BACKGROUND`.

    Raises:
        BrokenVideoError: missing or not an image.
    """
    name = name_of(path)
    try:
        if not isinstance(path, bytes):
            check_regular(path)
        data = path if isinstance(path, bytes) else epath.Path(path).read_bytes()
        with Image.open(io.BytesIO(data)) as stored:
            if stored.width * stored.height > opening.MAX_PIXELS:
                size = f"{stored.width}x{stored.height}"
                raise BrokenVideoError(
                    name, f"its {size} pixels are more than {opening.MAX_PIXELS}"
                )
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith("I"):  # PIL clips 16-bit grey at 255 instead of scaling it.
                grey = np.asarray(image).astype(np.float64) / 257.0
                return np.repeat(np.rint(grey)[..., None], 3, axis=-1).astype(np.uint8)
            return np.asarray(opaque(image))
    except FileNotFoundError as error:
        raise BrokenVideoError(name, "no such file", is_remote(path)) from error
    except (
        UnidentifiedImageError, OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError,
        AttributeError, OverflowError, struct.error, zlib.error, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        # All of these are raised by Pillow for damaged files.
        raise BrokenVideoError(name, f"not an image ({error})") from error
