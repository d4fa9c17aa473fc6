"""Frames of every family split by height over virtual devices: the result of whole frames."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.compiler_flags import quick_environment


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("family", ["cogvideox", "hunyuan_video", "mochi", "svd"])
def test_split_frames_equal_whole_frames(family, dtype):
    run = subprocess.run(
        [sys.executable, "-m", "tests.models.split_families_process", family, "2", dtype],
        cwd=Path(__file__).parents[2],
        env=quick_environment(2),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip() == "equal"
