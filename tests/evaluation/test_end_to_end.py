"""Every task with a tokenizer of random weights, from the command line to the files."""

import json
from pathlib import Path

import numpy as np
import pytest

from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.evaluate import main
from pyratok_jax.evaluation.data.clips import central_clip, sample_frames
from pyratok_jax.evaluation.models.features import TokenizerFeatures, Truth
from pyratok_jax.metrics.image import frame_errors, psnr_of

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


def rate(clips, side):
    """bpp of squares of `side` pixels, each clip in windows of these frame counts."""
    frames, tokens = 0, 0
    for windows in clips:
        frames += sum(windows)
        # Levels with cells of 16 and 8 pixels, a token frame for frame 0 and for every 4 after it.
        per_frame = (side // 16) ** 2 + (side // 8) ** 2
        tokens += sum((1 + -(-(n - 1) // 4)) * per_frame for n in windows)
    return 6 * tokens / (frames * side**2)


RATES = {
    "reconstruction": rate([[9]], 32),
    "compression": rate([[5]], 32),
    "segmentation": rate([[13]], 16),
    # 33 frames, and 13 of which the first is shared: 9 and 4 token frames of 5 tokens.
    "localization": 6 * 5 * (9 + 4 * 12 / 13) / (45 * 16**2),
    "classification": rate([[9]], 16),
    "probes": rate([[9]], 16),
}


def direct_psnr(tokenizer, data, frames):
    found = []
    for record in load_source(data)[:2]:
        clip = central_clip(record, frames, 32)
        ids = tokenizer.encode_padded(clip[None], [record.caption])
        found.append(psnr_of(frame_errors(clip, tokenizer.decode_padded(ids)[0])).mean())
    return np.mean(found)


def direct_utilisation(tokenizer, data):
    seen = set()
    for record in load_source(data)[:2]:
        for side in (16, 32):
            clip = central_clip(record, 5, side)
            for level in tokenizer.encode_padded(clip[None], [record.caption]):
                seen |= set(level.ravel().tolist())
    return 100 * len(seen) / 64


def direct_top1(tokenizer, data):
    """Classes of the first two videos, by mean code embeddings and texts in three templates."""
    names = sorted(path.name for path in Path(data).iterdir())
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    templates = ("a video of {}.", "a video of a person doing {}.", "{}.")
    queries = [
        unit(unit(np.asarray(tokenizer.text_features([t.format(n) for t in templates]))).mean(0))
        for n in names
    ]
    hits = []
    for path in sorted(Path(data).rglob("*.mp4"))[:2]:
        video = sample_frames(str(path), 9, 16)
        levels = tokenizer.code_embeddings(tokenizer.encode_padded(video[None]))
        pooled = [unit(np.asarray(level)[0].mean(0).mean((0, 1))) for level in levels]
        scores = queries @ np.mean(pooled, axis=0)
        hits.append(names[int(np.argmax(scores))] == path.parent.name)
    return 100 * np.mean(hits)


DIRECT = {
    "reconstruction": lambda tokenizer, data: direct_psnr(tokenizer, data, 9),
    "compression": lambda tokenizer, data: direct_psnr(tokenizer, data, 5),
    "codebook": direct_utilisation,
    "classification": direct_top1,
}


@pytest.mark.parametrize("task", RUNS)
def test_every_task_with_a_tokenizer(task, constructed, tokenizer, tmp_path, monkeypatch):
    """Metrics and rates against the tokenizer's own results, where that is a few lines."""
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
    if task in DIRECT:
        expected = DIRECT[task](tokenizer, str(constructed / folder))
        assert results["metrics"][key] == pytest.approx(expected, rel=1e-6)
    assert results["checkpoint"]["name"] == "runs/x" and len(results["checkpoint"]["hash"]) == 64
    expected = RATES.get(task)
    assert results["bpp"] == (None if expected is None else pytest.approx(expected, rel=1e-12))
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


def test_no_frame_inside_a_clip_is_read_from_a_still_picture_where_windows_overlap(tokenizer, rng):
    clip = rng.integers(0, 255, (11, 20, 24, 3)).astype(np.uint8)
    found = TokenizerFeatures(tokenizer, window=5, overlap=True).video(clip)
    last = found.levels[1]
    # Frames 0 to 4, 4 to 8 and 8 to 10, the later ones without their first.
    assert last.values.shape[:3] == (4, 3, 3)
    assert last.rows.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert found.bits == 6 * (4 * 2 * 2 + 4 * 4 * 4)
    second = TokenizerFeatures(tokenizer, window=5).video(clip[4:9]).levels[1]
    np.testing.assert_array_equal(last.values[2:3], second.values[1:])
    # Windows of one frame share none.
    single = TokenizerFeatures(tokenizer, window=1, overlap=True).video(clip).levels[1]
    assert single.rows.tolist() == list(range(11)) == list(range(len(single.values)))
