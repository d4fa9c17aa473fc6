"""Reconstructions of another tokenizer: measured as ours, refused where they do not match."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax import evaluate
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import central_clip, tokenbench_clip
from pyratok_jax.evaluation.models.reconstructors import (
    ReconstructionFiles,
    TokenizerReconstructor,
    check_match,
)
from pyratok_jax.metrics.image import frame_errors, psnr_of, tokenbench_psnr
from tests.data.synthetic import write_clips
from tests.tokens.tiny import PixelTokenizer

SETTINGS = ("--set=side=32", "--set=lpips=none", "--set=frames=9")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("videos"), count=2, frames=20)


def rebuild(videos, folder, change=lambda clip: clip):
    """A peer's work: each clip a little off."""
    folder.mkdir()
    for record in load_source(str(videos)):
        clip = central_clip(record, 9, 32)
        noise = np.random.default_rng(0).integers(0, 9, clip.shape)
        found = np.clip(clip + noise - 4, 0, 255).astype(np.uint8)
        np.save(folder / record.id.replace(".mp4", ".npy"), change(found))
    return folder


def run(videos, output, *arguments):
    common = ["--task", "reconstruction", "--data", str(videos), "--output", str(output)]
    evaluate.main([*common, *SETTINGS, *arguments])
    return json.loads((output / "results.json").read_text())


def test_a_peer_stands_beside_ours_and_published_figures(videos, tmp_path, capsys):
    run(videos, tmp_path / "ours", "--checkpoint", "oracle")
    peer = rebuild(videos, tmp_path / "peer")
    files = ("--reconstructions", str(peer), "--name", "Other VAE", "--rate", "0.25")
    results = run(videos, tmp_path / "out", *files, "--beside", str(tmp_path / "ours"))
    expected = [
        psnr_of(frame_errors(clip, np.load(peer / record.id.replace(".mp4", ".npy")))).mean()
        for record in load_source(str(videos))
        for clip in [central_clip(record, 9, 32)]
    ]
    assert results["metrics"]["psnr"] == pytest.approx(np.mean(expected), rel=1e-9)
    assert results["bpp"] == pytest.approx(0.25) and results["metrics"]["levels"] == []
    table = [line.split(" | ") for line in (tmp_path / "out/row.md").read_text().splitlines()]
    rows = {line[0].strip("| "): line[-1].strip("| ") for line in table if len(line) > 5}
    assert rows["Other VAE"] == rows["PyraTok-JAX oracle"] == "measured here"
    assert rows["PyraTok (paper)"] == "published, not measured here"
    page = (tmp_path / "out/report.html").read_text()
    assert all(name in page for name in ("Other VAE", "PyraTok-JAX oracle", "LARP"))
    with pytest.raises(UserError, match="protocol's frames: 9 there, 5 here"):
        run(videos, tmp_path / "short", "--checkpoint", "oracle", "--set=frames=5",
            "--beside", str(tmp_path / "ours"))  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda clip: clip[:-1], "8 frames, not 9"),
        (lambda clip: np.concatenate([clip, clip]), "more than 9 frames, not 9"),
        (lambda clip: clip[:, :24], "frames of 32x24 pixels, the clip has 32x32"),
        (lambda clip: clip.astype(np.float32), "expected uint8"),
        (lambda clip: clip // 128, "no value above 1"),
    ],
)
def test_what_does_not_match_is_refused(videos, tmp_path, change, message):
    peer = rebuild(videos, tmp_path / "peer", change)
    with pytest.raises(UserError, match=f"2 of 2 reconstructions do not match.*{message}"):
        run(videos, tmp_path / "out", "--reconstructions", str(peer), "--name", "x")
    assert not (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda clip: clip[::-1], "reverse order"),
        (lambda clip: clip[..., ::-1], "red and blue"),
        (lambda clip: np.concatenate([clip[:1], clip[:-1]]), "late by one"),
        (lambda clip: np.concatenate([clip[1:], clip[-1:]]), "early by one"),
        (lambda clip: (16 + clip * (219 / 255)).astype(np.uint8), "values are in 16..235"),
    ],
)
def test_orders_of_frames_and_channels_are_recognised(change, message):
    rng = np.random.default_rng(0)
    moving = rng.integers(0, 255, (9, 8, 8, 3)).astype(np.uint8)
    check_match(moving, np.clip(moving.astype(int) + 9, 0, 255).astype(np.uint8))
    check_match(moving, rng.integers(0, 255, moving.shape).astype(np.uint8))
    still = np.repeat(moving[:1], 9, axis=0)
    check_match(still, still[::-1])
    with pytest.raises(ValueError, match=message):
        check_match(moving, change(moving))


def test_rewritten_files_are_another_method(tmp_path):
    hashes = set()
    for value in (1, 1, 2):
        np.save(tmp_path / "a.npy", np.full((2, 4, 4, 3), value, np.uint8))
        hashes.add(ReconstructionFiles(str(tmp_path), None, "peer", ["a"]).checkpoint_hash)
    assert len(hashes) == 2


def test_options_that_do_not_go_together(videos, tmp_path):
    for arguments, message in (
        (("--reconstructions", str(tmp_path)), "needs --name"),
        (("--reconstructions", str(tmp_path), "--name", "x"), "2 of 2 clips have no file"),
        (("--reconstructions", str(videos), "--name", "x"), "the clips themselves"),
        (("--reconstructions", str(tmp_path), "--checkpoint", "oracle"), "two methods"),
        (("--reconstructions", str(tmp_path), "--name", "x", "--rate", "0"), "above 0"),
        (("--checkpoint", "oracle", "--rate", "1"), "belongs to --reconstructions"),
        (("--checkpoint", "oracle", "--protocol", "other"), "knows tokenbench"),
    ):
        with pytest.raises(UserError, match=message):
            run(videos, tmp_path / "out", *arguments)


def test_tokenbench_takes_whole_videos_and_its_own_figures(videos, tmp_path):
    (record, *_) = load_source(str(videos))
    clip = tokenbench_clip(record)
    assert clip.shape == (20, 48, 64, 3)
    peer = tmp_path / "peer"
    peer.mkdir()
    for one in load_source(str(videos)):
        np.save(peer / f"{one.id}.npy", np.clip(tokenbench_clip(one), 20, 255))
    output = tmp_path / "out"
    evaluate.main(["--task", "reconstruction", "--data", str(videos), "--output", str(output),
                   "--protocol", "tokenbench", "--set", "lpips=none",
                   "--reconstructions", str(peer), "--name", "x"])  # fmt: skip
    results = json.loads((output / "results.json").read_text())
    assert results["frames"]["mean"] == 20 and results["resolution"] == {"64x48": 2}
    assert results["bpp"] is None and results["metrics"]["rfvd"] is None
    assert "| Cosmos-DV 4x8x8 | TokenBench | 35.137 | 0.887 |" in (output / "row.md").read_text()
    # 20^2 = 400 wraps around to 144, and 16^2 to nothing.
    first, second = np.full((2, 4, 4, 3), 30, np.uint8), np.full((2, 4, 4, 3), 10, np.uint8)
    assert tokenbench_psnr(first, second) == pytest.approx(20 * np.log10(255 / 12), abs=1e-4)
    assert tokenbench_psnr(second + 16, second) > 100


def test_long_clips_go_through_a_tokenizer_in_windows():
    video = np.random.default_rng(0).integers(0, 255, (12, 20, 28, 3)).astype(np.uint8)
    rebuilt = TokenizerReconstructor(PixelTokenizer(), window=5).reconstruct(video, None)
    alone = TokenizerReconstructor(PixelTokenizer()).reconstruct(video[5:10], None)
    assert rebuilt.video.shape == video.shape
    np.testing.assert_array_equal(rebuilt.video[5:10], alone.video)
    parts = [len(alone.ids[0])] * 2 + [rebuilt.ids[0].shape[0] - 2 * len(alone.ids[0])]
    assert min(parts) > 0 and rebuilt.clip_bits == rebuilt.bits * sum(x.size for x in rebuilt.ids)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["svd", "cogvideox"])
def test_a_vae_of_diffusers_reconstructs_the_clips(videos, tmp_path, family):
    """And what it gives is ours with the same weights, padding included."""
    from benchmarks.diffusers_reconstructions import main as reconstruct
    from pyratok_jax.data.padding import to_model_range
    from pyratok_jax.models import cogvideox, svd
    from tests.models.vae_reference import our_vae, torch_vae

    sizes = {"svd": svd, "cogvideox": cogvideox}[family].tiny()
    model = torch_vae(sizes)
    model.save_pretrained(tmp_path / "weights")
    reconstruct(["--weights", str(tmp_path / "weights"), "--data", str(videos), "--device", "cpu",
                 "--output", str(tmp_path / "peer"), "--frames", "9", "--side", "32"])  # fmt: skip
    results = run(videos, tmp_path / "out", "--name", "x", "--reconstructions",
                  str(tmp_path / "peer"))  # fmt: skip
    assert results["items"]["evaluated"] == 2
    (record, *_) = load_source(str(videos))
    vae = our_vae(model, sizes)
    clip = to_model_range(jnp.asarray(central_clip(record, 9, 32)[None]))
    rebuilt = np.asarray(vae.decode(vae.encode(clip).mean))[0]
    expected = np.round((np.clip(rebuilt, -1, 1) + 1) * 127.5)
    found = np.load(tmp_path / f"peer/{record.id}.npy").astype(float)
    assert np.abs(found - expected).max() <= 1
