"""Cropping the same region out of all levels: every token kept lies in the same pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyratok_jax.models.pyratok.regions import Region, cells, crop_levels, fit_region, region_tokens
from pyratok_jax.nn.grids import grid_shape
from pyratok_jax.nn.settings import PRESETS


def _marked(strides, t, h, w, batch):
    """Codes whose channels are the bounds in pixels (t0, t1, y0, y1, x0, x1) of their token."""
    levels = []
    for dt, ds in strides:
        nt, nh, nw = grid_shape((dt, ds), t, h, w)
        frames = np.arange(nt)
        begin = np.where(frames == 0, 0, 1 + (frames - 1) * dt)
        end = np.where(frames == 0, 1, begin + dt)
        rows, columns = np.arange(nh) * ds, np.arange(nw) * ds
        time, y, x = np.meshgrid(frames, rows, columns, indexing="ij")
        bounds = [begin[time], end[time], y, y + ds, x, x + ds]
        one = np.stack(bounds, axis=-1).astype(np.float32)
        levels.append(jnp.broadcast_to(jnp.asarray(one), (batch, *one.shape)))
    return tuple(levels)


def _pixels(level):
    """The pixels that the tokens of one level and row cover; no pixel twice."""
    covered = set()
    for bounds in np.asarray(level).reshape(-1, 6).astype(int):
        t0, t1, y0, y1, x0, x1 = (bounds // [1, 1, 8, 8, 8, 8]).tolist()
        block = {(t, y, x) for t in range(t0, t1) for y in range(y0, y1) for x in range(x0, x1)}
        assert not covered & block
        covered |= block
    return covered


@settings(max_examples=20, deadline=None)
@given(
    preset=st.sampled_from(["pyramid", "uniform"]),
    groups=st.integers(0, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    budget=st.integers(60, 600),
    seed=st.integers(0, 1000),
)
def test_all_levels_cover_the_same_pixels_within_the_budget(
    preset, groups, rows, columns, budget, seed
):
    codes = _marked(PRESETS[preset], 1 + 4 * groups, 32 * rows, 32 * columns, 2)
    cropped = crop_levels(codes, budget, jax.random.key(seed))
    tokens = sum(int(np.prod(level.shape[1:4])) for level in cropped)
    assert tokens <= budget
    for row in range(2):
        pixels = [_pixels(level[row]) for level in cropped]
        assert all(one == pixels[0] for one in pixels)
        assert pixels[0]
        assert any(t == 0 for t, _, _ in pixels[0])


def test_regions_are_as_large_as_the_budget_allows_and_in_proportion():
    grids = tuple(grid_shape(stride, 17, 256, 256) for stride in PRESETS["pyramid"])
    assert cells(grids) == (4, 8, 8)
    assert fit_region(grids, None) == (4, 8, 8)
    assert fit_region(grids, 10**6) == (4, 8, 8)
    # One cell: 1 + 4 + 4 + 16 tokens in frame 0, and 4 + 8 + 4 + 16 per group of four frames.
    assert region_tokens(grids, Region(0, 1, 1)) == 25
    assert region_tokens(grids, Region(2, 3, 1)) == 3 * (25 + 2 * 32)
    for budget in (64, 256, 1024):
        region = fit_region(grids, budget)
        assert region_tokens(grids, region) <= budget
        for axis in range(3):
            larger = list(region)
            larger[axis] += 1
            assert larger[axis] > (4, 8, 8)[axis] or region_tokens(grids, Region(*larger)) > budget
        assert abs(region.rows - region.columns) <= 1


def test_places_differ_between_rows_and_reach_everywhere():
    codes = _marked(PRESETS["pyramid"], 17, 96, 96, 64)
    cropped = crop_levels(codes, 60, jax.random.key(0))
    corners = {tuple(np.asarray(row)[1, 0, 0].tolist()) for row in cropped[0]}
    assert {c[0] for c in corners} == {1.0, 5.0, 9.0, 13.0}
    assert {c[2] for c in corners} == {c[4] for c in corners} == {0.0, 32.0, 64.0}
    first = crop_levels(codes, 60, None)
    assert len({tuple(np.asarray(row)[1, 0, 0].tolist()) for row in first[0]}) == 1


def test_a_budget_below_one_cell_is_refused():
    codes = _marked(PRESETS["pyramid"], 5, 32, 32, 1)
    with pytest.raises(ValueError, match="25 tokens"):
        crop_levels(codes, 24, None)


def test_grids_that_do_not_nest_are_refused():
    with pytest.raises(ValueError, match="do not divide"):
        cells(((5, 4, 4), (5, 6, 6)))
