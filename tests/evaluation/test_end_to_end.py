"""Every task with a tokenizer of random weights, from the command line to the files."""

import json

import numpy as np
import pytest

from pyratok_jax.evaluate import main
from pyratok_jax.evaluation.models.features import TokenizerFeatures, Truth

RUNS = {
    "reconstruction": ("videos", ["frames=9", "side=32", "lpips=none"], "psnr"),
    "compression": (
        "videos",
        ["frames=5", "side=32", "lpips=none", "codecs=x264", "crfs=30,50"],
        "psnr",
    ),
    "codebook": ("videos", ["frames=5", "sides=16,32"], "utilisation"),
    "segmentation": (
        "vis",
        ["crf_iterations=1", "place_weight=0", "side=16", "crf_side=16"],
        "map",
    ),
    "localization": ("localization", ["side=16", "clip_frames=33", "fps=5"], "average_map"),
    "classification": ("classification/test", ["frames=9", "side=16"], "top1"),
    "probes": ("classification", ["frames=9", "side=16"], "linear_top1"),
    "vqa": ("mvbench", ["frames=9", "side=16", "projector=none"], "accuracy"),
}


@pytest.mark.parametrize("task", RUNS)
def test_every_task_with_a_tokenizer(task, constructed, tokenizer, tmp_path, monkeypatch):
    folder, settings, key = RUNS[task]
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda spec: tokenizer)
    arguments = ["--task", task, "--checkpoint", "runs/x", "--data", str(constructed / folder)]
    arguments += ["--output", str(tmp_path), "--limit", "4" if task == "probes" else "2"]
    for setting in settings:
        arguments += ["--set", setting]
    main(arguments)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["broken"] == []
    assert 0 <= results["metrics"][key] <= 100
    assert results["checkpoint"]["name"] == "runs/x" and len(results["checkpoint"]["hash"]) == 64
    if task not in ("vqa", "codebook"):
        assert results["bpp"] > 0
    assert "published, not measured here" in (tmp_path / "row.md").read_text() or task == "probes"


def test_long_clips_are_encoded_in_windows_with_a_row_for_every_frame(tokenizer, rng):
    clip = rng.integers(0, 255, (11, 20, 24, 3)).astype(np.uint8)
    features = TokenizerFeatures(tokenizer, window=5)
    found = features.video(clip)
    assert len(found.levels) == 2
    first, last = found.levels
    # Windows of 5, 5 and 1 frames: 2, 2 and 1 token frames; 20x24 pixels in cells of 16 and 8.
    assert first.values.shape[:3] == (5, 2, 2) and first.cell == (16, 16)
    assert last.values.shape[:3] == (5, 3, 3) and last.cell == (8, 8)
    assert last.rows.tolist() == [0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 4]
    # The padding to 32x32 holds tokens that cost bits too.
    assert found.bits == 6 * (5 * 2 * 2 + 5 * 4 * 4)
    alone = features.video(clip[5:10])
    np.testing.assert_array_equal(alone.levels[1].values, last.values[2:4])
    assert features.video(clip[:5], lambda: Truth(None, None)).bits == alone.bits
