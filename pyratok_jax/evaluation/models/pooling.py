"""One vector per clip out of the features of all levels."""

from collections.abc import Sequence

import numpy as np

from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.models.features import Features, normalized


def parse_levels(text: str) -> list[int] | None:
    """Levels as "1,4" (counted from 1); None for "all".

    Raises:
        UserError: written otherwise.
    """
    if text == "all":
        return None
    try:
        levels = [int(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or min(levels) < 1:
        raise UserError(f"--set levels={text}: expected all, or numbers from 1 on as in 1,4")
    return [level - 1 for level in levels]


def level_means(features: Features, levels: Sequence[int] | None, grid: int = 1) -> np.ndarray:
    """Unit mean vectors of the chosen levels, (levels, grid * grid * d).

    Args:
        features: of a clip.
        levels: their numbers from 0 on; None: all.
        grid: means are taken over grid x grid parts of the picture, which stand side by side.

    Raises:
        UserError: a level that there is not.
    """
    chosen = range(len(features.levels)) if levels is None else levels
    rows = []
    for number in chosen:
        if number >= len(features.levels):
            raise UserError(f"there is no level {number + 1}, only {len(features.levels)}")
        values = features.levels[number].values.mean(axis=0)
        parts = [
            cell.mean(axis=(0, 1))
            for row in np.array_split(values, min(grid, values.shape[0]), axis=0)
            for cell in np.array_split(row, min(grid, values.shape[1]), axis=1)
        ]
        # A level coarser than the grid repeats its cells, so that every clip gives one width.
        if len(parts) < grid * grid:
            parts = [values.mean(axis=(0, 1))] * (grid * grid)
        rows.append(normalized(np.concatenate(parts)))
    return np.stack(rows).astype(np.float32)
