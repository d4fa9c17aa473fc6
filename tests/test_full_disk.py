"""A full disk ends commands in one line; what was finished stays, the same command resumes.

The limit is that of a file's size, which writers of Python, C++ and FFmpeg meet alike.
"""

import contextlib
import hashlib
import resource

import numpy as np
import pytest

from pyratok_jax import decode_tokens, evaluate, reconstruct
from pyratok_jax.data import inspect as data_inspect
from pyratok_jax.data import prepare
from pyratok_jax.errors import run_cli
from pyratok_jax.tokens import inspect as token_inspect
from pyratok_jax.training.config import training_config
from pyratok_jax.training.loop.loop import train
from tests.data.synthetic import numbered_frames, write_video
from tests.evaluation.test_engine import Counting
from tests.test_damaged_files import blocks, shard_of, tokenizer  # noqa: F401
from tests.tokens.tiny import PixelTokenizer
from tests.training.conftest import no_tensorboard  # noqa: F401
from tests.training.worker import LineTask


@contextlib.contextmanager
def full_at(size):
    """No file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def ends_full(command, size, capsys):
    """Run a command until the disk is full: it says so in one line."""
    capsys.readouterr()
    with full_at(size), pytest.raises(SystemExit) as caught:
        run_cli(command)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert caught.value.code == 2 and len(lines) == 1, lines
    assert "disk" in lines[0] and "full" in lines[0] and "same command" in lines[0]


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A small video, and one that takes much room."""
    folder = tmp_path_factory.mktemp("noisy")
    rng = np.random.default_rng(0)
    write_video(folder / "a.mp4", numbered_frames(5, 32, 48))
    write_video(folder / "c.mp4", rng.integers(0, 255, (20, 64, 96, 3), dtype=np.uint8))
    return folder


def test_prepare(noisy, tmp_path, capsys):
    def command(output):
        words = ["--input", str(noisy), "--output", str(output), "--runner", "none"]
        prepare.main([*words, "--shards", "2", "--time-limit", "0"])

    command(tmp_path / "whole")
    ends_full(lambda: command(tmp_path / "out"), 200_000, capsys)
    finished = contents(tmp_path / "out")
    assert len([name for name in finished if name.startswith("reports/")]) >= 1
    command(tmp_path / "out")
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "out") == whole and finished.items() <= whole.items()


def test_reconstruct(noisy, tmp_path, capsys, monkeypatch):
    class Pixels(PixelTokenizer):
        def embed(self, captions):
            return None

    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda path: Pixels())

    def command():
        words = ["--checkpoint", "x", "--input", str(noisy), "--output", str(tmp_path / "out")]
        return reconstruct.main([*words, "--lpips", "none", "--window", "5"])

    ends_full(command, 20_000, capsys)
    names = set(contents(tmp_path / "out"))
    assert "a_reconstruction.mp4" in names and "c_reconstruction.mp4" not in names
    assert command() == 0
    assert {"c_reconstruction.mp4", "c_side_by_side.mp4"} <= set(contents(tmp_path / "out"))


def test_decode_tokens(tmp_path, capsys, monkeypatch, blocks):  # noqa: F811
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda path: PixelTokenizer())
    shard = shard_of(tmp_path / "t-train.tfrecord-00000-of-00001", blocks)

    def command(output, *more):
        words = ["--checkpoint", "x", "--input", str(shard), "--output", str(output)]
        return decode_tokens.main([*words, "--crf", "0", *more])

    assert command(tmp_path / "whole") == 0
    for more in ((), ("--png",)):
        output = tmp_path / f"out{len(more)}"
        ends_full(lambda output=output, more=more: command(output, *more), 150, capsys)
        assert not contents(output)
        assert command(output, *more) == 0
    assert contents(tmp_path / "out0") == contents(tmp_path / "whole")


def test_evaluate(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "load_task", lambda name: Counting)

    def command(output):
        words = ["--task", "counting", "--checkpoint", "oracle", "--data", "d"]
        return evaluate.main([*words, "--output", str(output)])

    command(tmp_path / "whole")
    for size in (100, 700, 2000):
        ends_full(lambda: command(tmp_path / "out"), size, capsys)
    assert command(tmp_path / "out") == 0
    partial = contents(tmp_path / "whole" / "partial")
    assert contents(tmp_path / "out" / "partial") == partial


def test_inspections(noisy, tmp_path, capsys, blocks):  # noqa: F811
    shard = shard_of(tmp_path / "t-train.tfrecord-00000-of-00001", blocks)
    commands = (
        lambda: data_inspect.main([str(noisy), "--output", str(tmp_path / "data")]),
        lambda: token_inspect.main([str(shard), "--output", str(tmp_path / "tokens")]),
    )
    for command in commands:
        ends_full(command, 300, capsys)
        assert not command()
    assert (tmp_path / "data" / "report.html").exists()
    assert (tmp_path / "tokens" / "report.html").exists()


@pytest.mark.usefixtures("no_tensorboard")
def test_training(tmp_path, capsys):
    def command(folder):
        config = training_config(
            steps=12, batch_size=8, log_every=3, checkpoint={"every": 4, "keep": 3}
        )
        train(config, folder, LineTask(8))

    command(tmp_path / "whole")
    for size in (400, 2_000):  # At its config, and at its first checkpoint.
        ends_full(lambda: command(tmp_path / "out"), size, capsys)
    command(tmp_path / "out")
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "out")]
    assert rows[0] == rows[1]
