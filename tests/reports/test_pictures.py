"""Error maps, token maps and panels, pixel by pixel."""

import numpy as np
import pytest

from pyratok_jax.reports.pictures import (
    ERROR_FULL_SCALE,
    error_colours,
    error_map,
    fit_within,
    side_by_side,
    token_maps,
)


def test_the_error_scale_is_fixed_and_grows_brighter():
    original = np.zeros((1, 1, 4, 3), np.uint8)
    other = original.copy()
    other[0, 0, 1], other[0, 0, 2], other[0, 0, 3] = 32, ERROR_FULL_SCALE, 255
    shown = error_map(original, other)[0, 0]
    np.testing.assert_array_equal(shown, error_colours()[[0, 32, 64, 64]])
    brightness = error_colours().astype(int).sum(axis=1)
    assert (np.diff(brightness[: ERROR_FULL_SCALE + 1]) >= 0).all() and brightness[0] < 10
    np.testing.assert_array_equal(error_map(other, original), error_map(original, other))


def test_an_error_in_one_channel_counts_a_third():
    original = np.zeros((1, 1, 1, 3), np.uint8)
    other = original.copy()
    other[..., 2] = 90
    np.testing.assert_array_equal(error_map(original, other)[0, 0, 0], error_colours()[30])
    with pytest.raises(ValueError, match="compare"):
        error_map(original, other[:, :, :0])


def test_every_token_covers_its_pixels_with_frame_0_apart():
    """Two levels over 5 frames of 8x16: strides (1, 8) and (4, 4)."""
    rng = np.random.default_rng(0)
    levels = [rng.normal(size=(5, 1, 2, 7)), rng.normal(size=(2, 2, 4, 7))]
    first, second = token_maps(levels, 5, 8, 16)
    assert first.shape == second.shape == (5, 8, 16, 3) and first.dtype == np.uint8
    for video, frames, side in ((first, [0, 1, 2, 3, 4], 8), (second, [0, 1, 1, 1, 1], 4)):
        tokens = video[:, ::side, ::side]
        np.testing.assert_array_equal(tokens.repeat(side, axis=1).repeat(side, axis=2), video)
        np.testing.assert_array_equal(tokens, tokens[frames])
        count = len(np.unique(tokens.reshape(-1, 3), axis=0))
        assert count == len(set(frames)) * (8 // side) * (16 // side)


def test_colours_are_the_principal_components():
    """Embeddings along one direction get one changing channel; the order is kept."""
    direction = np.array([0.0, 3.0, 0.0, 4.0]) / 5
    amounts = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    (video,) = token_maps([(amounts[:, None] * direction).reshape(1, 1, 5, 4)], 1, 1, 5)
    red = video[0, 0, :, 0].astype(int)
    assert (np.diff(red) > 0).all() and red[2] in (127, 128)
    assert (video[..., 1:] == 128).all()


def test_equal_codes_have_equal_colours_in_every_level_with_equal_means():
    rng = np.random.default_rng(1)
    codes = rng.normal(size=(4, 6))
    codes -= codes.mean(axis=0)
    first = codes.reshape(1, 2, 2, 6)
    second = codes[::-1].reshape(1, 2, 2, 6)
    a, b = token_maps([first, second], 1, 4, 4)
    np.testing.assert_array_equal(a[:, ::-1, ::-1], b)
    shifted, _ = token_maps([first + 5.0, second], 1, 4, 4)  # Levels may have their own offset.
    np.testing.assert_allclose(shifted.astype(int), a, atol=1)


@pytest.mark.parametrize("width", [1, 2])
def test_embeddings_of_fewer_than_three_channels(width):
    (video,) = token_maps([np.arange(4.0 * width).reshape(1, 2, 2, width)], 1, 2, 2)
    assert (video[..., width:] == 128).all() and video[..., 0].max() > video[..., 0].min()


def test_one_token_is_grey():
    (video,) = token_maps([np.ones((1, 1, 1, 5))], 1, 8, 8)
    assert video.shape == (1, 8, 8, 3) and (video == 128).all()


@pytest.mark.parametrize(
    ("grid", "size"),
    [
        ((1, 3, 2), (1, 8, 8)),
        ((2, 2, 2), (1, 8, 8)),
        ((3, 2, 2), (6, 8, 8)),
        ((1, 2, 4), (1, 8, 8)),
    ],
)
def test_a_grid_that_does_not_divide_the_clip_is_refused(grid, size):
    with pytest.raises(ValueError, match="divide"):
        token_maps([np.zeros((*grid, 4))], *size)


def test_side_by_side_keeps_pixels_and_has_even_sides():
    videos = [np.full((2, 3, 5, 3), value, np.uint8) for value in (10, 20, 30)]
    row = side_by_side(videos, gap=4)
    assert row.shape == (2, 4, 24, 3)
    for number, value in enumerate((10, 20, 30)):
        left = number * 9
        assert (row[:, :3, left : left + 5] == value).all()
    assert (row[:, :, 5:9] == 0).all() and (row[:, 3] == 0).all()


def test_fit_within_averages_and_never_enlarges():
    video = np.zeros((1, 4, 8, 3), np.uint8)
    video[:, :, ::2] = 100
    np.testing.assert_array_equal(fit_within(video, 4), np.full((1, 2, 4, 3), 50))
    assert fit_within(video, 8) is video
