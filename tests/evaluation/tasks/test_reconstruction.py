"""Reconstruction and codebook tasks: an oracle reaches the top, noise the bottom, codes add up."""

import json

import numpy as np
import pytest

from pyratok_jax import evaluate
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import central_clip, refuse_leakage
from pyratok_jax.evaluation.models.reconstructors import TokenizerReconstructor
from pyratok_jax.evaluation.tasks.codebook import Codebook, main_axes
from pyratok_jax.evaluation.tasks.reconstruction import Reconstruction
from tests.data.synthetic import numbered_frames, numbers_of, write_clips, write_video
from tests.tokens.tiny import PixelTokenizer


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("videos"), count=3, frames=30)


def run(task, data, output, *arguments):
    evaluate.main(["--task", task, "--data", str(data), "--output", str(output), *arguments])
    return json.loads((output / "results.json").read_text())["metrics"]


def test_an_oracle_is_perfect_and_noise_is_not(videos, tmp_path):
    arguments = ("--set=side=32", "--set=lpips=none", "--set=frames=9")
    best = run("reconstruction", videos, tmp_path / "a", "--checkpoint", "oracle", *arguments)
    assert best["psnr"] == 100.0 and best["ssim"] == pytest.approx(1.0, abs=1e-5)
    worst = run("reconstruction", videos, tmp_path / "b", "--checkpoint", "random", *arguments)
    # Against uniform noise the squared error lies between 1/12 and 1/3 of the range's square.
    assert 4.7 < worst["psnr"] < 10.8 and worst["ssim"] < 0.2
    assert worst["levels"][0]["utilisation"] == 1.0 and worst["clips"] == 3
    assert (tmp_path / "a" / "report.html").exists()


def test_the_middle_frames_are_taken_and_cropped_to_a_square(videos):
    clip = central_clip(ClipRecord("a", str(videos / "clip0.mp4")), 5, 32)
    assert clip.shape == (5, 32, 32, 3)
    # The wide picture is cropped, so only the left quarter still tells the number.
    assert numbers_of(clip) == [13, 14, 15, 16, 17] or numbers_of(clip) == [12, 13, 14, 15, 16]
    whole = central_clip(ClipRecord("a", str(videos / "clip0.mp4")), 50, 0)
    assert whole.shape == (30, 48, 64, 3)


def test_a_tokenizer_is_padded_and_cropped(videos):
    video = numbered_frames(6, 20, 28)
    rebuilt = TokenizerReconstructor(PixelTokenizer()).reconstruct(video, "a caption")
    assert rebuilt.video.shape == video.shape
    assert [x.shape for x in rebuilt.ids] == [(9, 2, 2), (5, 2, 2), (3, 2, 2), (3, 4, 4)]


def test_codes_are_counted_over_clips_and_sides(videos):
    task = Codebook(str(videos), frames=5, sides="16,32")
    model = TokenizerReconstructor(PixelTokenizer())
    partials = {item.id: task.evaluate_item(model, item) for item in task.items()}
    found = task.aggregate(partials)
    ids = [v for p in partials.values() for k, v in p.items() if k.startswith("ids")]
    assert found["utilisation"] == pytest.approx(100 * len(np.unique(np.concatenate(ids))) / 64)
    assert [level["tokens"] for level in found["by_side"]["32"]] == [
        3 * n for n in (5 * 4, 3 * 4, 2 * 4, 2 * 16)
    ]


def test_embeddings_are_drawn_on_their_main_axes(videos, tmp_path, rng):
    # Two flat clouds in five dimensions: the plane they lie in is found, distances are kept.
    plane, _ = np.linalg.qr(rng.normal(size=(5, 2)))
    flat = [rng.normal(size=(9, 2)) * (5, 1), rng.normal(size=(7, 2)) + (3, 0)]
    found = main_axes([points @ plane.T + 4 for points in flat])
    for points, shown in zip(flat, found, strict=True):
        before = np.linalg.norm(points[:, None] - points[None], axis=-1)
        np.testing.assert_allclose(np.linalg.norm(shown[:, None] - shown[None], axis=-1), before)
    assert np.concatenate(found)[:, 0].std() > np.concatenate(found)[:, 1].std()
    assert main_axes([np.ones((3, 1)), np.zeros((2, 1))])[0].shape == (3, 2)
    task = Codebook(str(videos), frames=5, sides="16,32")
    model = TokenizerReconstructor(PixelTokenizer())
    partials = {item.id: task.evaluate_item(model, item) for item in task.items()[:2]}
    (picture,) = task.pictures(partials, tmp_path)
    assert (tmp_path / "embeddings.png").stat().st_size > 5000 and "side 32" in picture.caption


def test_clips_that_were_trained_on_are_refused(videos, tmp_path):
    copy = tmp_path / "renamed.mp4"
    copy.write_bytes((videos / "clip1.mp4").read_bytes())
    with pytest.raises(UserError, match="1 of 3 files.*clip1.mp4"):
        refuse_leakage(str(videos), str(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    write_video(other / "a.mp4", numbered_frames(3, 16, 16))
    assert refuse_leakage(str(videos), str(other)) == 3


@pytest.mark.parametrize("changes", [{"lpips": "squeeze"}, {"frames": 0}, {"side": -1}])
def test_impossible_settings_are_refused(videos, changes):
    with pytest.raises(UserError, match="--set"):
        Reconstruction(str(videos), **changes).check()
    with pytest.raises(UserError, match="--set sides"):
        Codebook(str(videos), sides="a,b").check()
