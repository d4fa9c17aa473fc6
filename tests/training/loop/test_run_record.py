"""What may change when a run resumes, what must be asked for, and how changes are kept."""

import json

import pytest
from etils import epath

from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.training.config import tokenizer_training_config, training_config
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.run_record import RunRecord
from tests.training.worker import LineTask

pytestmark = pytest.mark.usefixtures("no_tensorboard")


def line_config(**changes):
    values = {"steps": 4, "batch_size": 8, "log_every": 2}
    return training_config(**values | changes)


def history(folder):
    path = folder / "config_changes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def ran(tmp_path):
    """A run of four steps, and its config as it was written."""
    train(line_config(), tmp_path, LineTask(8))
    return tmp_path, (tmp_path / "config.json").read_bytes()


def test_another_optimizer_is_refused_in_one_line_with_code_2(ran, capsys):
    folder, written = ran
    config = line_config(steps=8)
    config.optimizer.learning_rate = 0.5
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: train(config, folder, LineTask(8)) and 0)
    assert ended.value.code == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(lines) == 1
    assert "optimizer.learning_rate was 0.0001, is 0.5" in lines[0]
    assert "--config.resume_with_changes=true" in lines[0] and "from step 4 on" in lines[0]
    # Nothing was trained or rewritten.
    assert (folder / "config.json").read_bytes() == written and not history(folder)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["4"]


def test_a_change_on_purpose_is_kept_with_its_step_and_then_in_force(ran, capsys):
    folder, written = ran
    config = line_config(steps=6, resume_with_changes=True)
    config.optimizer.learning_rate = 0.5
    assert train(config, folder, LineTask(8)).steps_run == 2
    assert "changed on resuming: optimizer.learning_rate was 0.0001, is 0.5" in " ".join(
        capsys.readouterr().out.split()
    )
    assert (folder / "config.json").read_bytes() == written
    first = {"optimizer.learning_rate": [0.0001, 0.5], "steps": [4, 6]}
    assert history(folder) == [{"step": 4, "changes": first}]
    # The new value is now the one to keep, without asking again; the old one is a change.
    config.resume_with_changes = False
    config.steps = 8
    train(config, folder, LineTask(8))
    assert history(folder)[1:] == [{"step": 6, "changes": {"steps": [6, 8]}}]
    with pytest.raises(UserError, match=r"optimizer.learning_rate was 0.5, is 0.0001"):
        train(line_config(steps=9), folder, LineTask(8))


def record(folder, config, newest=3):
    return RunRecord(epath.Path(folder), config, newest)


@pytest.fixture
def begun(tmp_path):
    """The record of a tokenizer's training that has begun."""
    config = tokenizer_training_config()
    RunRecord(epath.Path(tmp_path), config, None)
    return tmp_path, config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 7), ("checkpoint.every", 7), ("log_every", 3), ("mesh.fsdp", 2),
        ("profile_steps", "1:2"), ("data.workers", 5), ("report.clips", 1), ("remat", "all"),
    ],
)  # fmt: skip
def test_length_logging_and_machines_may_change(begun, key, value):
    folder, config = begun
    config.update_from_flattened_dict({key: value})
    changes = record(folder, config).changes
    assert changes.keys() == {key} and changes[key][1] == value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss.weights.entropy", 9.0), ("optimizer.name", "muon"), ("data.zoom", 3.0),
        ("batch_size", 4), ("masking.spatial_ratio", 0.9), ("ema_decay", 0.5), ("accumulate", 2),
    ],
)  # fmt: skip
def test_what_a_training_computes_changes_on_purpose_alone(begun, key, value):
    folder, config = begun
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=f"{key} was .*, is {value!r}.*resume_with_changes"):
        record(folder, config)
    config.resume_with_changes = True
    assert record(folder, config).changes.keys() == {key}


@pytest.mark.parametrize(("key", "value"), [("seed", 7), ("model.tokenizer.width", 7)])
def test_the_model_and_the_seed_never_change(begun, key, value):
    folder, config = begun
    config.update_from_flattened_dict({key: value})
    config.resume_with_changes = True
    with pytest.raises(UserError, match=f"holds a run of another config: {key} was .*, is 7"):
        record(folder, config)


def test_a_run_that_saved_nothing_begins_again(begun):
    folder, config = begun
    config.optimizer.learning_rate = 0.25
    assert not record(folder, config, newest=None).changes
    assert json.loads((folder / "config.json").read_text())["optimizer"]["learning_rate"] == 0.25


def test_many_changes_are_counted(begun):
    folder, config = begun
    for name in ("entropy", "hierarchy", "commitment", "text", "l1", "ssim"):
        config.loss.weights[name] = 77.0
    with pytest.raises(UserError, match="commitment was .*and 2 more"):
        record(folder, config)


def test_a_broken_history_is_named(begun):
    folder, config = begun
    (folder / "config_changes.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="line 1: changes: Field required; repair"):
        record(folder, config)


def test_a_config_from_before_a_key_had_what_holds_without_it(tmp_path):
    """A run that was begun before levels could choose their inputs is resumed as what it was."""
    config = tokenizer_training_config()
    config.model.tokenizer.update({"inputs": "residual-everywhere", "surrogate": "identity"})
    written = json.loads(config.to_json_best_effort())
    del written["model"]["tokenizer"]["inputs"], written["loss"]["formulas"]
    del written["model"]["tokenizer"]["surrogate"]
    del written["loss"]["settings"]["text_levels"], written["report"]["tasks"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert RunRecord(epath.Path(tmp_path), config, 4).changes == {}
    config.model.tokenizer.inputs = "paper"
    with pytest.raises(UserError, match="inputs was 'residual-everywhere', is 'paper'"):
        RunRecord(epath.Path(tmp_path), config, 4)
