"""Where tokens stand and who sees whom, against definitions written out."""

import math

import numpy as np
import pytest

from pyratok_jax.models.prior.config import PriorConfig, Sampling
from pyratok_jax.models.prior.layout import Layout, level_places, visible
from pyratok_jax.models.prior.tasks import TASKS, given_tokens
from pyratok_jax.tokens.dataset import flatten
from tests.models.prior.tiny import LATENT, LAYOUT, STRIDES


def test_groups_are_the_latent_frames_of_the_pixels():
    expected = []
    for (t, h, w), (dt, _) in zip(LAYOUT.grids, STRIDES, strict=True):
        for frame in range(t):
            last_pixel = frame * dt  # The last pixel frame of a token frame.
            expected += [-(-last_pixel // LATENT[0])] * (h * w)
    assert LAYOUT.group.tolist() == expected and LAYOUT.groups == 3
    assert np.bincount(LAYOUT.part).tolist() == [2, 2, 8, 8, 4, 8, 8, 4, 8]


def test_slots_are_the_sequence_of_token_files():
    ids = np.split(np.arange(LAYOUT.size), np.cumsum(LAYOUT.counts)[:-1])
    levels = [x.reshape(grid) for x, grid in zip(ids, LAYOUT.grids, strict=True)]
    sequence = flatten(levels, 1000)
    slots = LAYOUT.slots
    np.testing.assert_array_equal(np.where(sequence < 1000, sequence, -1), slots.token)
    np.testing.assert_array_equal(slots.token[slots.predicting + 1], np.arange(LAYOUT.size))


def test_cells_that_overlap_stand_near():
    first, _, last = (LAYOUT.places[LAYOUT.level == level] for level in range(3))
    # A cell of level 1 is 1 frame of 16x16, of level 3 four frames of 8x8.
    assert np.abs(first[2:10, 2:].mean(0) - last[8:16, 2:].mean(0)).max() == 0
    assert abs(first[2:10, 1].mean() - last[8:16, 1].mean()) < 1e-6
    later = level_places(2, (1, 2, 4), (4, 8), LATENT, start=5)
    np.testing.assert_allclose(later, last[16:])


def test_a_window_hides_older_groups_but_never_the_prefix():
    from pyratok_jax.models.prior.layout import Visibility

    key = Visibility(np.array([-1, 0, 1, 2]), np.arange(4), np.full(4, -1))
    query = Visibility(np.array([9]), np.array([3]), np.array([-1]))
    assert visible(query, key).tolist() == [[True, True, True, True]]
    assert visible(query, key, 1).tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_gives_whole_cells(task):
    layout = Layout(((9, 4, 4), (5, 4, 4), (3, 8, 8)), STRIDES, LATENT)
    given = given_tokens(layout, task)
    for level, (dt, ds) in enumerate(STRIDES):
        grid = given[layout.level == level].reshape(layout.grids[level])
        # Pixels of cells that are given lie in the region.
        frames = np.repeat(np.arange(len(grid)), [1] + [dt] * (len(grid) - 1))
        pixels = grid[frames].repeat(ds, 1).repeat(ds, 2)
        assert pixels.shape == (9, 64, 64)
        centre = np.zeros((9, 64, 64), bool)
        centre[:, 16:48, 16:48] = True
        region = {
            "prediction": np.broadcast_to(np.arange(9)[:, None, None] < 5, centre.shape),
            "interpolation": np.broadcast_to(
                ((np.arange(9) < 1) | (np.arange(9) > 4))[:, None, None], centre.shape
            ),
            "inpainting": ~centre,
            "outpainting": centre,
        }[task]
        np.testing.assert_array_equal(pixels, region)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "spiral"}, "order 'spiral'"),
        ({"head": "softmax", "bits": 16}, "2|65536 outputs"),
        ({"head": "factorised", "factors": (6, 6)}, r"must sum to 16"),
        ({"condition": "classes"}, "needs their number"),
        ({"heads": 5}, "must divide"),
        ({"order": "raster", "window": 2}, "window 2 is of the order blocks, not of raster"),
        ({"strides": ((1, 8), (4, 8)), "context_patch": 2}, "context_patch 2"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PriorConfig(**({"strides": STRIDES, "width": 64, "heads": 4, "kv_heads": 2} | changes))


def test_a_configuration_survives_json():
    import json

    made = PriorConfig(strides=STRIDES, width=64, heads=4, kv_heads=2)
    assert PriorConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_grids_of_two_clips_are_refused():
    with pytest.raises(ValueError, match="no one clip"):
        Layout(((9, 1, 2), (5, 1, 2), (2, 2, 4)), STRIDES, LATENT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": (1.0, math.nan)}, "temperature"),
        ({"temperature": (math.nan,)}, "temperature"),
        ({"top_p": (1.0, math.nan, 0.5)}, "top_p"),
        ({"guidance": math.nan}, "guidance nan"),
        ({"choice_temperature": math.nan}, "choice_temperature nan"),
        ({"guidance_schedule": "square"}, "guidance_schedule 'square': expected constant, linear"),
    ],
)
def test_impossible_sampling_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**changes)
