"""Clips for small trainings: pictures under a moving camera, shapes, colours, shares of sources."""

import numpy as np
import pytest
from PIL import Image

from pyratok_jax.demo.clips import PhasedClips
from pyratok_jax.demo.sources import augment, photo_clips, shape_clips
from pyratok_jax.errors import UserError

PHASES = ("4*8x5x32",)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("PYRATOK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos" / "below"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.new("RGBA", (170, 180), (0, 0, 0, 0)).save(folder / "clear.png")
    Image.new("RGB", (20, 20)).save(folder / "icon.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "photos"


def test_pictures_become_clips_and_are_kept(photos):
    clips = photo_clips(photos, 6, 5, 32, seed=1)
    assert clips.shape == (6, 5, 32, 32, 3) and clips.dtype == np.uint8
    np.testing.assert_array_equal(clips, photo_clips(photos, 6, 5, 32, seed=1))
    flat = [len(np.unique(clip.reshape(-1, 3), axis=0)) == 1 for clip in clips]
    assert sum(flat) == 3  # The transparent picture is one colour, and has its share.
    with pytest.raises(UserError, match="no picture"):
        photo_clips(photos / "none", 1, 1, 8)


def test_shapes_move_in_many_colours():
    clips = shape_clips(None, 12, 5, 32, seed=0)
    np.testing.assert_array_equal(clips, shape_clips(None, 12, 5, 32, seed=0))
    assert clips.shape == (12, 5, 32, 32, 3)
    assert sum(bool((clip[0] != clip[-1]).any()) for clip in clips) >= 6
    assert np.ptp(clips.reshape(-1, 3), axis=0).min() > 200


def test_colours_change_and_pictures_become_flat():
    video = shape_clips(None, 8, 3, 16, seed=1)
    rng = np.random.default_rng
    np.testing.assert_array_equal(augment(video, rng(0), {}), video)
    changed = augment(video, rng(0), {"colour": 1.0})
    assert all((a != b).any() for a, b in zip(changed, video, strict=True))
    for clip in augment(video, rng(0), {"flat": 1.0}):
        assert len(np.unique(clip.reshape(-1, 3), axis=0)) <= 2
    with pytest.raises(KeyError, match="hue"):
        augment(video, rng(0), {"hue": 1.0})


def test_sources_have_their_shares(photos):
    counts = {"shapes": 64, "photos": 64}
    loader = PhasedClips(PHASES, counts, 0, shares={"shapes": 0, "photos": 1.0}, photos=str(photos))
    pictures = {clip.tobytes() for clip in photo_clips(photos, 8, 5, 32, 1)}
    mirrored = {clip[:, :, ::-1].tobytes() for clip in photo_clips(photos, 8, 5, 32, 1)}
    batch = next(loader)["video"]
    assert batch.shape == (8, 5, 32, 32, 3)
    assert all(clip.tobytes() in pictures | mirrored for clip in batch)
    with pytest.raises(UserError, match="nothing of photos"):
        PhasedClips(PHASES, counts, 0, shares={"shapes": 1.0}, photos=str(photos))
    with pytest.raises(UserError, match="no folder"):
        PhasedClips(PHASES, counts, 0)
