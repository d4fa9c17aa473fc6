"""The guard speaks once when a level stays low, and again only after it had recovered."""

import signal

import pytest

from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.loop.monitoring import CollapseGuard, StopSignal
from pyratok_jax.training.tasks.tokenizer import TokenizerTask
from tests.training.tiny import tiny_config


def _values(first, second):
    return {"distinct/level_1": first, "distinct/level_2": second, "loss": 0.0}


def test_a_level_that_stays_low_is_named_once():
    guard = CollapseGuard(0.1, patience=3)
    low = _values(0.5, 0.02)
    assert guard.check(low) is None and guard.check(low) is None
    said = guard.check(low)
    assert said is not None and "level 2 (2.0%)" in said and "level 1" not in said
    assert guard.check(low) is None
    assert guard.check(_values(0.5, 0.2)) is None
    assert [guard.check(low) is None for _ in range(3)] == [True, True, False]


def test_no_patience_never_warns():
    guard = CollapseGuard(0.1, patience=0)
    assert all(guard.check(_values(0.0, 0.0)) is None for _ in range(4))


def test_a_training_says_so(world, tmp_path, capsys):
    config = tiny_config(world, log_every=1)
    config.collapse.update({"threshold": 2.0, "patience": 3})
    task = TokenizerTask(config)
    config.steps = 3
    train(config, tmp_path / "work", task)
    said = capsys.readouterr().out
    assert "codebook collapse" in said and said.count("level 4 (") == 1


def test_a_second_ctrl_c_ends_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == "SIGINT" and "Ctrl-C again to quit now" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
