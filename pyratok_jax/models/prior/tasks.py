"""Generation with a part of the clip given, for the bidirectional order: which tokens are known.

The tasks are MAGVIT's (Yu et al. 2023) in token space. A token is given where its whole cell lies
in the given region, so that nothing of the region to be drawn is seen.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool

from pyratok_jax.models.prior.layout import Layout

TaskName = Literal["prediction", "interpolation", "inpainting", "outpainting"]
TASKS: tuple[TaskName, ...] = ("prediction", "interpolation", "inpainting", "outpainting")


def given_groups(layout: Layout, groups: int) -> Bool[np.ndarray, " n"]:
    """Tokens of the first latent frames."""
    return layout.group < groups


def given_tokens(layout: Layout, task: TaskName) -> Bool[np.ndarray, " n"]:
    """The tokens that a task gives.

    Args:
        layout: of the clip.
        task: "prediction": frame 0 and the first half of the later latent frames;
            "interpolation": the first and the last latent frame; "inpainting": all but the central
            half of each side; "outpainting": only that.

    Raises:
        ValueError: an unknown task.
    """
    if task == "prediction":
        return given_groups(layout, 1 + (layout.groups - 1) // 2)
    if task == "interpolation":
        return (layout.group == 0) | (layout.group == layout.groups - 1)
    if task not in TASKS:
        raise ValueError(f"task {task!r}: expected {', '.join(TASKS)}")
    overlaps, within = _central(layout)
    return within if task == "outpainting" else ~overlaps


def _central(layout: Layout) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Tokens whose cell overlaps the central box, and those whose cell lies within it."""
    overlaps = within = np.ones(layout.size, bool)
    half = np.array([ds for _, ds in layout.strides])[layout.level] / layout.latent_stride[1] / 2
    for axis, side in ((2, layout.latent_sides[0]), (3, layout.latent_sides[1])):
        low, high = layout.places[:, axis] - half, layout.places[:, axis] + half
        overlaps = overlaps & (high > side / 4) & (low < 3 * side / 4)
        within = within & (low >= side / 4) & (high <= 3 * side / 4)
    return overlaps, within
