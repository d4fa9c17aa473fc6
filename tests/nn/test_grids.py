"""Token grids: published token counts, inverses, and resampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyratok_jax.nn import grids
from pyratok_jax.nn.settings import PRESETS, check_grids


@pytest.mark.parametrize(
    ("preset", "tokens"), [("pyramid", 9792), ("uniform", 20480), ("compact", 2448)]
)
def test_presets_have_the_published_number_of_tokens(preset, tokens):
    shapes = [grids.grid_shape(stride, 17, 256, 256) for stride in PRESETS[preset]]
    assert sum(t * h * w for t, h, w in shapes) == tokens


@settings(max_examples=8, deadline=None)
@given(r=st.integers(1, 4), g=st.sampled_from([1, 2, 4]), n=st.integers(0, 3))
def test_folding_and_unfolding_are_inverse(r, g, n):
    x = jax.random.normal(jax.random.key(0), (2, 1 + g * n, 2 * r, 3 * r, 5))
    folded = grids.group_time(grids.space_to_depth(x, r), g)
    assert folded.shape == (2, 1 + n, 2, 3, g * r * r * 5)
    unfolded = grids.depth_to_space(grids.ungroup_time(folded, g), r)
    np.testing.assert_array_equal(unfolded, x)


def test_groups_hold_frames_in_order_and_copies_of_frame_zero():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1, 1)
    np.testing.assert_array_equal(
        grids.group_time(x, 4)[0, :, 0, 0], [[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]]
    )


def test_resampling_averages_down_copies_up_and_keeps_frame_zero_apart():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1, 1) * jnp.ones((1, 5, 4, 4, 1))
    down = grids.resample(x, (3, 2, 4))
    np.testing.assert_array_equal(down[0, :, 0, 0, 0], [0.0, 1.5, 3.5])
    up = grids.resample(down, (5, 8, 4))
    np.testing.assert_array_equal(up[0, :, 0, 0, 0], [0.0, 1.5, 1.5, 3.5, 3.5])
    with pytest.raises(ValueError, match="not whole"):
        grids.resample(x, (5, 3, 4))


@pytest.mark.parametrize(
    ("strides", "message"),
    [((), "empty"), (((3, 8),), "time stride 3"), (((4, 12),), "space stride 12")],
)
def test_bad_grids_are_refused(strides, message):
    with pytest.raises(ValueError, match=message):
        check_grids(strides, 4, 8)


def test_a_clip_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="does not divide"):
        grids.grid_shape((4, 8), 16, 64, 64)
