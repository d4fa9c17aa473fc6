"""A whole life on a storage service: trained, killed, resumed, exported, decoded, evaluated.

The steps alone, at a fraction of the time, are in `test_bucket.py`.
"""

import json
import os
import signal

import numpy as np
import pytest

from pyratok_jax import decode_tokens, evaluate, export_tokens
from pyratok_jax.checkpoints.working_folder import newest_step, read_parameters, steps_of
from pyratok_jax.errors import UserError
from pyratok_jax.io.remote import any_path
from pyratok_jax.tokenizer import load_tokenizer
from pyratok_jax.training.checkpoints import locked
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.loop.metrics_log import read_metrics
from pyratok_jax.training.tasks.tokenizer import TokenizerTask
from tests.gcs_server import upload
from tests.training.tiny import arrays_equal, tiny_config
from tests.training.worker import before_each_batch

pytestmark = pytest.mark.slow
RUN = "gs://bucket/runs/a"


def config_of(world):
    """A training from random levels, as `test_run` has it: programs are compiled once."""
    config = tiny_config(world)
    config.calibration.batches, config.log_every = 0, 1
    config.model.backbone, config.language.spec = "gs://bucket/vae", "gs://bucket/language"
    config.data.sources = ("gs://bucket/videos",)
    return config


def stopped_after(number, config, workdir):
    """Train until Ctrl-C, which comes at the batch of a step."""
    task = TokenizerTask(config)
    before_each_batch(task, lambda n: n == number and os.kill(os.getpid(), signal.SIGINT))
    with locked(workdir):
        trained = train(config, workdir, task)
    assert not trained.finished
    task.describe(workdir)
    return trained


@pytest.fixture(scope="module")
def trained(world, bucket):
    """Stopped at step 2, with a checkpoint that was cut off; resumed and stopped again."""
    for name in ("vae", "language", "videos", "heldout"):
        upload(bucket, world / name, name)
    workdir, config = any_path(RUN), config_of(world)
    stopped_after(2, config, workdir)
    bucket.store("runs/a/checkpoints/3/state/manifest.ocdbt", b"cut off")
    lines = (workdir / "metrics.jsonl").read_text()
    (workdir / "metrics.jsonl").write_text(lines + '{"step": 3, "loss": 1.0}\n')
    assert newest_step(workdir) == 2
    return workdir, stopped_after(4, config, workdir)


def test_a_training_is_killed_and_resumed(trained):
    workdir, result = trained
    last = int(result.state.step)
    assert result.steps_run == last - 2 > 0 and steps_of(workdir) == [2, last]
    assert arrays_equal(read_parameters(workdir, last), dict(result.state.params))
    lines = read_metrics(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, last + 1))
    assert all(line["loss"] != 1.0 for line in lines)
    names = [path.name for path in workdir.iterdir()]
    assert sum("tfevents" in name for name in names) == 2
    assert not any(name.startswith((".lock", ".part", ".probe")) for name in names)


def test_tokens_are_exported_decoded_and_evaluated_there(trained, world, tmp_path, capsys):
    options = ["--checkpoint", RUN]
    tokens = "gs://bucket/tokens"
    given = ["--input", "gs://bucket/heldout", "--output", tokens, "--window", "5", "--shards", "1"]
    assert export_tokens.main([*options, *given]) == 0
    assert export_tokens.main([*options, *given]) == 0  # Nothing is left to do.
    assert "0 shards" in capsys.readouterr().out
    videos = [*options, "--input", tokens, "--output", "gs://bucket/decoded"]
    assert decode_tokens.main(videos) == 0
    local = tmp_path / "local"
    assert decode_tokens.main([*options, "--input", tokens, "--output", str(local)]) == 0
    (file,) = local.iterdir()
    assert any_path(f"gs://bucket/decoded/{file.name}").read_bytes() == file.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        decode_tokens.main(videos)
    results = "gs://bucket/results"
    assert evaluate.main([*options, "--task", "reconstruction", "--data", "gs://bucket/heldout",
                          "--output", results, "--set", "lpips=none"]) == 0  # fmt: skip
    found = json.loads(any_path(f"{results}/results.json").read_text())
    assert np.isfinite(found["metrics"]["psnr"]) and any_path(f"{results}/report.html").exists()


def test_a_tokenizer_is_the_same_from_a_bucket_and_a_copy(trained, bucket, tmp_path):
    for name in bucket.names():
        if name.startswith("runs/a/"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bucket.objects[name][0])
    copy = tmp_path / "runs" / "a"
    assert load_tokenizer(copy).checkpoint_hash == load_tokenizer(RUN).checkpoint_hash
