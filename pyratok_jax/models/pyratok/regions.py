"""Tokens of every level within a budget: spread over the whole clip, or one region of it.

Spread tokens form an even lattice over time and space. A region's unit is a cell of the coarsest
grid: in space one token of the coarsest level and all finer tokens that it covers, in time frame 0
or one group of later frames. A region is a rectangle of cells, over frame 0 and a run of later
groups.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Grid = tuple[int, int, int]


class Region(NamedTuple):
    """Extent of a region in cells: `groups` after frame 0, `rows` x `columns`."""

    groups: int
    rows: int
    columns: int


def cells(grids: tuple[Grid, ...]) -> Region:
    """Extent of the whole clip.

    Raises:
        ValueError: when the finer grids do not divide into the coarsest.
    """
    whole = Region(
        min(t - 1 for t, _, _ in grids), min(h for _, h, _ in grids), min(w for _, _, w in grids)
    )
    for t, h, w in grids:
        uneven = (t - 1) % whole.groups if whole.groups else t - 1
        if uneven or h % whole.rows or w % whole.columns:
            raise ValueError(f"token grids {grids} do not divide into cells of the coarsest")
    return whole


def region_tokens(grids: tuple[Grid, ...], region: Region) -> int:
    """Tokens of all levels inside a region of that extent."""
    return sum(t * h * w for t, h, w in region_grids(grids, region))


def region_grids(grids: tuple[Grid, ...], region: Region) -> tuple[Grid, ...]:
    """Token grid of each level inside a region."""
    whole = cells(grids)
    per_group = [(t - 1) // whole.groups if whole.groups else 0 for t, _, _ in grids]
    return tuple(
        (1 + region.groups * g, region.rows * h // whole.rows, region.columns * w // whole.columns)
        for g, (_, h, w) in zip(per_group, grids, strict=True)
    )


def fit_region(grids: tuple[Grid, ...], budget: int | None) -> Region:
    """The largest region within `budget` tokens that keeps the clip's proportions roughly.

    It grows from one cell, always along the axis that is relatively shortest and still fits.

    Raises:
        ValueError: when not even one cell of frame 0 fits.
    """
    whole = cells(grids)
    if budget is None:
        return whole
    region = Region(0, 1, 1)
    least = region_tokens(grids, region)
    if least > budget:
        raise ValueError(f"a token budget of {budget} is below one cell, which has {least} tokens")
    while True:
        grown = [
            region._replace(**{axis: getattr(region, axis) + 1})
            for axis in sorted(
                Region._fields,
                key=lambda axis: getattr(region, axis) / max(1, getattr(whole, axis)),
            )
            if getattr(region, axis) < getattr(whole, axis)
        ]
        fitting = [one for one in grown if region_tokens(grids, one) <= budget]
        if not fitting:
            return region
        region = fitting[0]


def crop_levels(
    codes: tuple[Float[Array, "b _t _h _w bits"], ...], budget: int | None, key: Array | None
) -> tuple[Float[Array, "b _t _h _w bits"], ...]:
    """One region of every level, at a random place for each row of the batch.

    Args:
        codes: all levels on their grids.
        budget: most tokens over all levels; None keeps everything.
        key: random key; None takes the first region.
    """
    grids: tuple[Grid, ...] = tuple((q.shape[1], q.shape[2], q.shape[3]) for q in codes)
    whole, region = cells(grids), fit_region(grids, budget)
    if region == whole:
        return codes
    batch = codes[0].shape[0]
    room = jnp.asarray([w - r + 1 for w, r in zip(whole, region, strict=True)])
    if key is None:
        start = jnp.zeros((batch, 3), jnp.int32)
    else:
        start = jax.random.randint(key, (batch, 3), 0, room)
    return tuple(
        _crop(q, start, whole, grid)
        for q, grid in zip(codes, region_grids(grids, region), strict=True)
    )


def _crop(
    q: Float[Array, "b t h w bits"], start: Int[Array, "b 3"], whole: Region, grid: Grid
) -> Float[Array, "b t2 h2 w2 bits"]:
    t, h, w, bits = q.shape[1:]
    group = (t - 1) // whole.groups if whole.groups else 0
    steps = jnp.asarray([group, h // whole.rows, w // whole.columns])

    def one(q: Array, start: Array) -> Array:
        time, row, column = start * steps
        first = jax.lax.dynamic_slice(q, (0, row, column, 0), (1, *grid[1:], bits))
        size = (grid[0] - 1, *grid[1:], bits)
        rest = jax.lax.dynamic_slice(q, (1 + time, row, column, 0), size)
        return jnp.concatenate([first, rest], axis=0)

    return jax.vmap(one)(q, start)


def lattice(grid: Grid, budget: int) -> Grid:
    """Counts (times, rows, columns) of an even lattice over a grid, at most `budget` in all.

    It grows from one token, always along the axis that is relatively sparsest and still fits.
    """
    counts = [1, 1, 1]
    while True:
        order = sorted(range(3), key=lambda axis: counts[axis] / grid[axis])
        for axis in order:
            grown = counts[axis] + 1
            if grown <= grid[axis] and math.prod(counts) // counts[axis] * grown <= budget:
                counts[axis] = grown
                break
        else:
            return counts[0], counts[1], counts[2]


def spread_counts(grids: tuple[Grid, ...], budget: int) -> tuple[Grid, ...]:
    """The lattice of each level.

    All of the first level where that leaves a quarter of the budget, else of it half the budget;
    the finer levels share what is left evenly, and what one of them does not need goes on.

    Raises:
        ValueError: fewer tokens than twice the levels.
    """
    if budget < 2 * len(grids):
        raise ValueError(f"a token budget of {budget} is too small for {len(grids)} levels")
    if len(grids) == 1:
        return (lattice(grids[0], budget),)
    whole = math.prod(grids[0]) <= 3 * budget // 4
    found = {0: grids[0] if whole else lattice(grids[0], budget // 2)}
    left = budget - math.prod(found[0])
    # Small levels first, so that what they leave is still to be had.
    finer = sorted(range(1, len(grids)), key=lambda number: math.prod(grids[number]))
    for place, number in enumerate(finer):
        found[number] = lattice(grids[number], max(left // (len(finer) - place), 1))
        left -= math.prod(found[number])
    return tuple(found[number] for number in range(len(grids)))


def spread_tokens(
    grids: tuple[Grid, ...], budget: int | None, key: Array | None
) -> tuple[Int[Array, "_n"], ...] | None:
    """Which tokens of each level, in raster order, the budget takes; None: all.

    Args:
        grids: of all levels, coarse to fine.
        budget: most tokens over all levels.
        key: draws the lattices' common phase; None centres them.
    """
    if budget is None or sum(math.prod(grid) for grid in grids) <= budget:
        return None
    phase = jnp.full(3, 0.5) if key is None else jax.random.uniform(key, (3,))
    chosen = []
    for grid, counts in zip(grids, spread_counts(grids, budget), strict=True):
        # Steps of at least one position: no token is taken twice.
        t, h, w = (
            jnp.minimum(jnp.floor((jnp.arange(n) + phase[i]) * (grid[i] / n)), grid[i] - 1)
            for i, n in enumerate(counts)
        )
        raster = (t[:, None, None] * grid[1] + h[:, None]) * grid[2] + w
        chosen.append(raster.reshape(-1).astype(jnp.int32))
    return tuple(chosen)
