import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyratok_jax.data.padding import ClipSizes


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 14), st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([4, 8]),
    st.sampled_from([1, 8, 16, 32]),
)
def test_padding_is_undone_and_least(shape, factor, multiple):
    video = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    padded, padding = ClipSizes(factor, multiple).pad(video)
    t, h, w, _ = padded.shape
    assert (t - 1) % factor == 0 and h % multiple == 0 and w % multiple == 0
    assert t - shape[0] < factor and h - shape[1] < multiple and w - shape[2] < multiple
    assert padding.to_dict()["padded_frames"] == t
    np.testing.assert_array_equal(padding.crop(padded), video)
    np.testing.assert_array_equal(padded[-1, : shape[1], : shape[2]], video[-1])
    np.testing.assert_array_equal(padded[0, -1, : shape[2]], video[0, -1])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="empty"):
        ClipSizes(4, 8).pad(np.zeros((0, 4, 4, 3)))
    _, padding = ClipSizes(4, 8).pad(np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match="expected"):
        padding.crop(np.zeros((2, 4, 4, 3)))
