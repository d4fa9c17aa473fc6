"""Whole trainings of a tiny tokenizer: what changes, what repeats, what resumes, what it leaves."""

import json
import math
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.checkpoints.working_folder import read_parameters
from pyratok_jax.errors import UserError
from pyratok_jax.tokenizer import load_tokenizer
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.tasks.run import run
from pyratok_jax.training.tasks.tokenizer import TokenizerTask
from tests.training.tiny import arrays_equal, clip, tiny_config
from tests.training.worker import before_each_batch


def uncalibrated_config(world):
    """A training from random levels."""
    config = tiny_config(world)
    config.calibration.batches = 0
    return config


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A working folder after a whole run, and what the run said it wrote."""
    workdir = tmp_path_factory.mktemp("run") / "work"
    config = tiny_config(world)
    config.evaluators = ({"name": "heldout", "every": 15},)
    return workdir, run(config, workdir)


def test_a_run_leaves_what_it_names(finished):
    workdir, outputs = finished
    assert {"checkpoint", "report", "contact_sheet", "metrics"} <= outputs.keys()
    assert all(path.exists() for path in outputs.values())
    rows = {row["role"]: row for row in json.loads(
        outputs["metrics"].read_text())["heldout"] if row["role"]}  # fmt: skip
    assert {"model", "ceiling", "step0", "calibrated"} <= rows.keys()
    tokens = 5 * 4 + 3 * 4 + 2 * 4 + 2 * 16
    assert rows["model"]["bpp"] == pytest.approx(tokens * 6 / (5 * 32 * 32))
    page = outputs["report"].read_text()
    assert "<video" in page and not re.search(r'(src|href)="https?://', page)
    assert any(b"_hparams_" in path.read_bytes() for path in workdir.glob("events*"))
    # What calibration and what training gave, and the levels one by one.
    assert "from calibration or the stage before" in page and "from the training steps" in page
    seconds = json.loads(outputs["metrics"].read_text())["seconds"]
    assert {"step compiled", "steps", "held-out clips measured"} <= seconds.keys()
    assert min(seconds.values()) >= 0 and "step compiled" in page
    named = {row["name"] for row in json.loads(outputs["metrics"].read_text())["heldout"]}
    assert {"level 1 alone", "levels 1 to 2", "levels 1 to 3", "trained"} <= named
    assert "levels 1 to 4" not in named and "of those possible" in page and "1 - SSIM" in page
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 15, 20, 20]
    wanted = "l1 ssim commitment entropy hierarchy text text_codebook autoregressive drift_vae"
    assert set(f"{wanted} drift_dinov3 retention".split()) <= lines[-2].keys()
    # The evaluator measures during the training what the report does at its end.
    measured = {name.removeprefix("heldout/"): x for name, x in lines[-1].items() if name != "step"}
    quality = {"psnr", "psnr_video", "ssim", "ssim_uniform"}
    nats = {f"nats/{caption}/level_{n}" for caption in ("own", "none") for n in (1, 2, 3, 4)}
    # One held-out clip: there is no other's caption.
    assert measured.keys() == quality | nats
    for name in quality:
        assert measured[name] == pytest.approx(rows["model"][name], rel=1e-4), name
    assert all(0 < measured[name] < math.inf for name in nats)
    assert lines[3]["heldout/psnr"] != lines[5]["heldout/psnr"]


def test_only_adapters_levels_synthesis_and_embeddings_change(stopped, world):
    trained, _ = stopped
    fresh = TokenizerTask(tiny_config(world))
    start = Partition(fresh.system, fresh.is_trainable)
    assert arrays_equal(trained.frozen, start.frozen)
    assert any(name.startswith("dino.blocks") for name in start.frozen)
    assert sum("vae" in name or "language_model" in name for name in start.frozen) > 100
    changed = {
        name
        for name, value in trained.state.params.items()
        if not np.array_equal(value, start.trainable[name])
    }
    for part in ("blocks.0", "blocks.3", "synthesis.0", "adapter.b", "alignment.embedding",
                 "drift.hidden"):  # fmt: skip
        assert any(part in name for name in changed), part


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    """A training that Ctrl-C ended after step 9, and its working folder."""
    workdir = tmp_path_factory.mktemp("stopped") / "work"
    config = uncalibrated_config(world)
    task = TokenizerTask(config)

    def interrupt(number):
        if number == 9:
            os.kill(os.getpid(), signal.SIGINT)

    before_each_batch(task, interrupt)
    return train(config, workdir, task), workdir


@pytest.fixture(scope="module")
def uncalibrated(world, tmp_path_factory):
    """An undisturbed training from random levels, and its working folder."""
    workdir = tmp_path_factory.mktemp("uncalibrated") / "work"
    config = uncalibrated_config(world)
    task = TokenizerTask(config)
    trained = train(config, workdir, task)
    task.describe(workdir)
    return trained, workdir


def test_the_same_seed_gives_the_same_bits_and_resuming_is_exact(stopped, uncalibrated, world):
    """20 steps = 9 steps, an interruption, and 11 more: of two trainings, so seeds decide all."""
    config = uncalibrated_config(world)
    trained, workdir = stopped
    assert not trained.finished and int(trained.state.step) == 9
    rest = train(config, workdir, TokenizerTask(config))
    assert rest.finished and rest.steps_run == 11
    whole = uncalibrated[0]
    assert arrays_equal(whole.state.params, rest.state.params)
    leaves = [jax.tree.leaves(t.state.opt_state) for t in (whole, rest)]
    assert all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (workdir, uncalibrated[1])
    ]
    # Means of the logged steps before the interruption are of other stretches.
    assert lines[0][-1] == lines[1][-1] and lines[0][-1]["step"] == 20


def test_the_loaded_tokenizer_decodes_what_it_encoded(finished):
    tokenizer = load_tokenizer(finished[0])
    video = clip(0, batch=2)
    ids = tokenizer.encode_padded(video, ["a red square", None])
    stored = tuple(np.asarray(x, np.uint16).astype(np.uint32) for x in ids)
    np.testing.assert_array_equal(tokenizer.decode_padded(ids), tokenizer.decode_padded(stored))
    graph_video = tokenizer.decode_padded(tokenizer.encode_padded(video, ["a red square", None]))
    np.testing.assert_array_equal(graph_video, tokenizer.decode_padded(ids))
    assert tokenizer.code_embeddings(ids)[0].shape == (2, 5, 2, 2, 16)
    assert tokenizer.text_features(["a red square", "left"]).shape == (2, 16)


def test_captions_change_tokens_after_training_and_none_is_fine(uncalibrated):
    """Some token, with a caption or without: after so short a training there are few codes."""
    tokenizer = load_tokenizer(uncalibrated[1])
    video = clip(3, batch=16)
    without = tokenizer.encode_padded(video, [None] * 16)
    changed = 0
    for caption in ("a red square moves left", "blue blue down", "green", "right up"):
        ids = tokenizer.encode_padded(video, [caption] * 16)
        changed += sum(int((a != b).sum()) for a, b in zip(ids, without, strict=True))
    assert changed > 0
    assert tokenizer.decode_padded(without).shape == video.shape


def test_a_checkpoint_of_another_config_is_refused(finished, world):
    config = tiny_config(world)
    config.model.tokenizer.width = 32
    with pytest.raises(UserError, match="model.tokenizer.width was 16, is 32; name"):
        run(config, finished[0])
    with pytest.raises(UserError, match="seed was 0, is 3; name"):
        run(tiny_config(world, seed=3), finished[0])


def test_a_finished_run_is_only_reported_again(finished, world):
    before = read_parameters(finished[0], 20)
    outputs = run(tiny_config(world), finished[0])
    assert outputs["report"].exists()
    assert arrays_equal(before, read_parameters(finished[0], 20))


def test_other_frozen_weights_are_refused(finished, tmp_path, world):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    description = json.loads((copy / "tokenizer.json").read_text())
    description["backbone"]["sha256"] = "0" * 64
    (copy / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="not the one that"):
        load_tokenizer(copy)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nothing", "no such folder"),
        (lambda p: p, "no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        load_tokenizer(make(tmp_path))
