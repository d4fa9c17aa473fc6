"""Frames split by height over devices, under jit: the same values, and no frame is gathered."""

import pytest

from tests.processes import run_script

pytestmark = pytest.mark.process


def test_split_frames_give_the_values_and_gradients_of_whole_ones():
    run_script("sharded_train_step", devices=4)


def test_convolutions_of_split_frames_are_right_beside_an_axis_that_splits_only_weights():
    run_script("sharded_networks", devices=8)
