"""Frames shared by devices give the tokens and pixels of whole frames, up to rounding."""

import subprocess
import sys
from pathlib import Path

import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.tokenizer import local_devices
from tests.compiler_flags import quick_environment

SCRIPT = """
import jax, numpy as np
from pyratok_jax.errors import UserError
from pyratok_jax.tokenizer import local_devices
from tests.tokens.tiny import tiny_network
plain = tiny_network()
split = plain.split_rows(local_devices(4))
assert plain.rows_multiple(4) == 32
video = np.random.default_rng(0).integers(0, 256, (1, 5, 64, 32, 3), np.uint8)
video = video // 2 + np.arange(64, dtype=np.uint8)[None, None, :, None, None]
ids = plain.encode(video)
got = split.encode(video)
assert all(a.shape == b.shape for a, b in zip(ids, got))
same = [np.mean(a == b) for a, b in zip(ids, got)]
assert min(same) > 0.95, same
distinct = [len(np.unique(a)) for a in ids]
assert min(distinct) > 2, distinct
error = np.abs(split.decode(ids).astype(int) - plain.decode(ids).astype(int))
assert error.max() <= 1, error.max()
low = video[:, :, :48]
for refused in (lambda: split.encode(low), lambda: split.decode(plain.encode(low))):
    try:
        refused()
    except UserError as wrong:
        assert "height of 48" in str(wrong), wrong
    else:
        raise SystemExit("a height of 48 was taken")
print("split")
"""


def test_four_devices_agree_with_one():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[2],
        env=quick_environment(devices=4),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "split", done.stderr[-3000:]


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(UserError, match="--spatial 64"):
        local_devices(64)
