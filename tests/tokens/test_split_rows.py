"""Frames sharded over devices give the tokens and pixels of whole frames, up to rounding."""

import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.tokenizer import local_devices
from tests.processes import run_script


def test_four_devices_agree_with_one():
    """Every program of a tokenizer; see the script."""
    done = run_script("sharded_tokenizer", devices=4)
    assert done.stdout.split() == ["tokens", "segments", "ceiling", "refusals"]


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(UserError, match="--spatial 64"):
        local_devices(64)
