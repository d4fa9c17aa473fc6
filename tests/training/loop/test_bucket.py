"""Working folders, tokens and results on a storage service, with faults (`test_bucket_whole`).

Orbax, TensorStore and gcsfs talk to the service over HTTP; the training is a line's, and the
tokenizer plain arithmetic, so that nothing is compiled.
"""

import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from pyratok_jax import decode_tokens, evaluate, export_tokens, report
from pyratok_jax.checkpoints import hub
from pyratok_jax.checkpoints.working_folder import newest_step, read_parameters, steps_of
from pyratok_jax.errors import UserError, environment_reason
from pyratok_jax.io import locks
from pyratok_jax.io.mirror import cached_file, cached_folder
from pyratok_jax.io.remote import any_path
from pyratok_jax.reports.report import write_report
from pyratok_jax.training.checkpoints import locked
from pyratok_jax.training.config import parse_command, training_config
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.loop.metrics_log import read_metrics
from tests.data.synthetic import numbered_frames, write_video
from tests.gcs_server import upload
from tests.tokens.tiny import PixelTokenizer
from tests.training.tiny import arrays_equal
from tests.training.worker import LineTask, before_each_batch

pytestmark = pytest.mark.usefixtures("no_tensorboard")


def config_of():
    checkpoint = {"every": 4, "keep": 2, "keep_every": 0}
    return training_config(steps=6, batch_size=8, log_every=1, checkpoint=checkpoint)


def line_in(workdir, *, stop=None):
    """Train a line; with `stop`, until Ctrl-C at the batch of that step."""
    task = LineTask(8)
    if stop is not None:
        before_each_batch(task, lambda n: n == stop and os.kill(os.getpid(), signal.SIGINT))
    with locked(workdir):
        return train(config_of(), workdir, task)


def test_a_training_is_killed_and_resumed_as_on_a_disk(bucket, tmp_path):
    command = parse_command(
        ["train", "--workdir=gs://bucket/line"], default_config="configs/demo.py"
    )
    workdir = command.workdir
    assert not line_in(workdir, stop=3).finished
    stopped = newest_step(workdir)
    # What a process that was killed leaves: a checkpoint without its mark, and later lines.
    bucket.store("line/checkpoints/5/state/manifest.ocdbt", b"cut off")
    lines = (workdir / "metrics.jsonl").read_text()
    (workdir / "metrics.jsonl").write_text(lines + '{"step": 6, "loss": 1.0}\n')
    assert 0 < stopped == newest_step(workdir) < 6
    assert line_in(workdir).finished
    assert line_in(tmp_path / "line").finished
    assert steps_of(workdir)[-1] == 6 and 5 not in steps_of(workdir)
    assert arrays_equal(read_parameters(workdir, 6), read_parameters(tmp_path / "line", 6))
    own, local = (read_metrics(run / "metrics.jsonl") for run in (workdir, tmp_path / "line"))
    assert own == local and [line["step"] for line in own] == [1, 2, 3, 4, 5, 6]
    names = [path.name for path in workdir.iterdir()]
    assert "config.json" in names
    assert not any(name.startswith((".lock", ".part", ".probe")) for name in names)


def test_failed_and_slow_requests_are_tried_again(bucket):
    failed = set()

    def once(method, path):
        """Every upload fails the first time, as a service does that is overloaded."""
        name = path.partition("?")[0]
        if method != "POST" or name in failed or len(failed) > 2:
            return None
        failed.add(name)
        return 503

    bucket.delay = 0.005
    with bucket.failing(once):
        any_path("gs://bucket/slow/a").write_text("a")
        assert line_in(any_path("gs://bucket/slow/line")).finished
    bucket.delay = 0.0
    assert failed and newest_step(any_path("gs://bucket/slow/line")) == 6


def test_tokens_results_and_reports_are_written_there(bucket, tmp_path, monkeypatch, capsys):
    (tmp_path / "videos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        video = numbered_frames(5, 32, 32)
        video[:, :16] = rng.integers(0, 255, (5, 4, 16, 3)).repeat(4, 1).repeat(2, 2)
        write_video(tmp_path / "videos" / f"clip{i}.mp4", video)
    upload(bucket, tmp_path / "videos", "clips")
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda path: PixelTokenizer())
    tokens = "gs://bucket/tokens"
    given = ["--checkpoint", "0", "--input", "gs://bucket/clips", "--output", tokens]
    for _ in range(2):  # The second time nothing is left to do.
        assert export_tokens.main([*given, "--window", "5", "--shards", "1"]) == 0
    assert "0 shards with 0 clips" in capsys.readouterr().out
    videos = ["--checkpoint", "0", "--input", tokens, "--output"]
    for output in ("gs://bucket/decoded", str(tmp_path / "decoded")):
        assert decode_tokens.main([*videos, output]) == 0
    for file in (tmp_path / "decoded").iterdir():
        assert bucket.objects[f"decoded/{file.name}"][0] == file.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        decode_tokens.main([*videos, "gs://bucket/decoded"])
    results = "gs://bucket/results"
    given = ["--task", "reconstruction", "--data", "gs://bucket/clips", "--set", "lpips=none"]
    given += ["--set", "side=32", "--set", "fvd=false"]
    own = ["--reconstructions", str(tmp_path / "decoded"), "--name", "arithmetic"]
    assert evaluate.main([*given, *own, "--output", results]) == 0
    found = json.loads(any_path(f"{results}/results.json").read_text())
    assert np.isfinite(found["metrics"]["psnr"]) and any_path(f"{results}/report.html").exists()
    written = write_report("gs://bucket/page", title="t", clips=[], curves={}, settings={},
                           table=[{"name": "a", "psnr": 20.0}])  # fmt: skip
    assert "20.0" in written["report"].read_text()


def test_what_others_write_is_listed_at_once(bucket):
    folder = any_path("gs://bucket/listed")
    bucket.store("listed/a", b"a")
    assert [path.name for path in folder.iterdir()] == ["a"]
    bucket.store("listed/b", b"b")  # As TensorStore or another process does.
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]


def test_runs_in_a_bucket_are_compared(bucket, capsys):
    for name, psnr in (("a", 21.25), ("b", 22.5)):
        row = {"name": "trained", "role": "model", "psnr": psnr}
        bucket.store(f"{name}/metrics.json", json.dumps({"heldout": [row], "steps": 5}).encode())
        bucket.store(f"{name}/config.json", json.dumps({"seed": psnr}).encode())
    report.main(["gs://bucket/a", "gs://bucket/b"])
    assert "21.25" in capsys.readouterr().out


def test_weights_and_files_are_copied_once(bucket):
    bucket.store("w/config.json", b"{}")
    bucket.store("w/weights/d/0", b"data")
    folder = hub.local_folder("gs://bucket/w")
    assert (folder / "weights" / "d" / "0").read_bytes() == b"data"
    assert not (cached_folder("gs://bucket/w", ("*.json",)) / "weights").exists()
    bucket.requests.clear()
    assert cached_file("gs://bucket/w/config.json").read_bytes() == b"{}"
    assert not any("alt=media" in path for _, path in bucket.requests)
    with pytest.raises(UserError, match="no such folder"):
        hub.local_folder("gs://bucket/none")
    shutil.rmtree(folder)


def test_a_bucket_that_cannot_be_written_to_is_said_before_any_work(bucket):
    with pytest.raises(UserError, match="no bucket other"), locked("gs://other/run"):
        raise AssertionError("the block must not run")
    with (
        bucket.failing(lambda method, path: 403 if method == "POST" else None),
        pytest.raises(UserError, match=r"cannot be written to.*log in"),
        locked("gs://bucket/refused"),
    ):
        raise AssertionError("the block must not run")
    with bucket.failing(lambda method, path: 401), pytest.raises(Exception) as error:
        any_path("gs://bucket/a").read_bytes()
    assert "the storage service failed" in environment_reason(error.value)


def test_a_folder_in_a_bucket_is_held_by_one_training(bucket):
    with (
        locked("gs://bucket/held"),
        pytest.raises(UserError, match="is training in gs://bucket/held"),
        locked("gs://bucket/held"),
    ):
        raise AssertionError("the block must not run")
    bucket.store("held/.lock.0-of-1", f"process 4194305 on {os.uname().nodename}".encode())
    with locked("gs://bucket/held"):  # Of a process that has ended.
        assert read_metrics(any_path("gs://bucket/held/metrics.jsonl")) == []


@pytest.mark.parametrize("stale", [False, True], ids=["free", "left by the dead"])
def test_of_several_that_start_at_once_one_holds_the_folder(bucket, stale):
    folder, name = f"race{stale}", f"race{stale}/.lock.0-of-1"
    if stale:
        bucket.store(name, f"process 4194305 on {os.uname().nodename}".encode())
    start, done = threading.Barrier(6), threading.Barrier(6)
    held, refused = [], []

    def claim(number):
        start.wait(30)
        try:
            with locked(f"gs://bucket/{folder}"):
                held.append(number)
                done.wait(30)
        except UserError as error:
            refused.append(str(error))
            done.wait(30)

    threads = [threading.Thread(target=claim, args=(number,), daemon=True) for number in range(6)]
    bucket.delay = 0.05
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    bucket.delay = 0.0
    assert len(held) == 1 and len(refused) == 5
    assert all(f"process {os.getpid()} on" in text and "mark" not in text for text in refused)
    assert name not in bucket.objects


def test_a_container_that_starts_again_with_the_number_that_it_had_takes_its_lock(bucket):
    text = f"process {os.getpid()} on {os.uname().nodename}, mark 0123456789abcdef"
    bucket.store("again/.lock.0-of-1", text.encode())
    with locked("gs://bucket/again"):
        assert "mark 0123456789abcdef" not in bucket.objects["again/.lock.0-of-1"][0].decode()


def test_who_slept_through_the_loss_of_its_lock_leaves_that_of_the_next(bucket, monkeypatch):
    monkeypatch.setattr(locks, "_RENEWED", 0.05)
    with locked("gs://bucket/slept"):
        bucket.store("slept/.lock.0-of-1", b"process 1 on elsewhere, mark ffffffffffffffff")
        time.sleep(0.3)
    assert bucket.objects["slept/.lock.0-of-1"][0].startswith(b"process 1 on elsewhere")
