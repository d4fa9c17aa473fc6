"""Frames sharded over devices give the tokens and pixels of whole frames, up to rounding."""

import subprocess
import sys
from pathlib import Path

import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.tokenizer import local_devices
from tests.compiler_flags import quick_environment

ROOT = Path(__file__).parents[2]


def test_four_devices_agree_with_one():
    """Every program of a tokenizer; see the script."""
    done = subprocess.run(
        [sys.executable, "tests/scripts/sharded_tokenizer.py"],
        cwd=ROOT,
        env=quick_environment(devices=4) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["tokens", "segments", "ceiling", "refusals"], done.stderr[-3000:]


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(UserError, match="--spatial 64"):
        local_devices(64)
