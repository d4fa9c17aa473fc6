"""Range checks of token records, which may come from anyone, before anything is allocated."""

import math
from collections.abc import Mapping
from typing import Any

MAX_SIDE = 1 << 15  # Pixels.
MAX_FRAMES = 1 << 24
MIN_FPS, MAX_FPS = 1e-3, 1e5
# Padding repeats edges up to a multiple of the tokenizer's strides, never by more than this.
_MOST_PADDING = 1 << 12


def check_numbers(values: Mapping[str, Any]) -> None:
    """Refuse numbers of a record that no export writes.

    Args:
        values: fields of a `TokenRecord` by name.

    Raises:
        ValueError: naming the field and its value.
    """
    for name, least, most in (
        ("video_frames", 1, MAX_FRAMES),
        ("video_height", 1, MAX_SIDE),
        ("video_width", 1, MAX_SIDE),
        ("first_frame", 0, values["video_frames"] - 1),
        ("frames", 1, values["video_frames"] - values["first_frame"]),
        ("top", 0, values["video_height"] - 1),
        ("height", 1, values["video_height"] - values["top"]),
        ("left", 0, values["video_width"] - 1),
        ("width", 1, values["video_width"] - values["left"]),
        ("padded_frames", values["frames"], values["frames"] + _MOST_PADDING),
        ("padded_height", values["height"], values["height"] + _MOST_PADDING),
        ("padded_width", values["width"], values["width"] + _MOST_PADDING),
        ("overlap", 0, MAX_SIDE),
        ("blocks", 1, 1 << 40),
        ("block", 0, values["blocks"] - 1),
        ("vocabulary", 1, 1 << values["bits"]),
    ):
        if not least <= values[name] <= most:
            raise ValueError(f"{name} is {values[name]}, not within {least} .. {most}")
    if not (math.isfinite(values["fps"]) and MIN_FPS <= values["fps"] <= MAX_FPS):
        raise ValueError(f"fps is {values['fps']}, not within {MIN_FPS} .. {MAX_FPS}")


def check_grid(grid: tuple[int, ...], values: Mapping[str, Any]) -> None:
    """Refuse a level's grid that is empty, or finer than the padded block.

    Raises:
        ValueError: naming the grid.
    """
    size = values["padded_frames"], values["padded_height"], values["padded_width"]
    if len(grid) != 3 or not all(1 <= n <= m for n, m in zip(grid, size, strict=True)):
        raise ValueError(f"a grid of {grid} for a padded block of {size}")
