"""Frames split by height over 4 and 8 virtual devices, in processes that have so many."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.compiler_flags import quick_environment


@pytest.mark.parametrize("devices", [4, 8])
def test_split_frames_equal_whole_frames(devices):
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, "-m", "tests.models.wan_vae.split_process", str(devices)],
        cwd=root,
        env=quick_environment(devices),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "equal"
