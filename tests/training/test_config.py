"""Command lines and configs: what is understood, and what is refused in one line."""

import subprocess
import sys

import pytest

from pyratok_jax.data.buckets import parse_buckets
from pyratok_jax.errors import UserError
from pyratok_jax.nn.grids import grid_shape
from pyratok_jax.nn.settings import PRESETS
from pyratok_jax.training.config import parse_flags, tokenizer_training_config, training_config

DEMO = "configs/demo.py"


def parse(*arguments):
    return parse_flags(["train", *arguments], default_config=DEMO)


def test_values_and_the_working_folder_come_from_the_command_line():
    config, workdir = parse("--config", DEMO, "--config.steps=7", "--config.seed", "3")
    assert (config.steps, config.seed, str(workdir)) == (7, 3, "runs/demo")
    config, workdir = parse(f"--config={DEMO}:uniform", "--workdir=elsewhere")
    assert config.model.tokenizer.grids == "uniform" and str(workdir) == "elsewhere"
    assert parse()[0].steps == parse("--config", DEMO)[0].steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=nothing.py"], "nothing.py"),
        (["--config.colour=red"], "colour"),
        (["--config.optimizer.speed=1"], "speed"),
        (["--config.steps=many"], "many"),
        ([f"--config={DEMO}:huge"], "huge"),
        (["--colour=red"], "colour"),
        (["--config=demo", "--config", "demo"], "given twice"),
        (["demo"], "unexpected argument 'demo'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        parse(*arguments)


def test_unknown_defaults_are_refused():
    with pytest.raises(KeyError, match="stepz"):
        training_config(stepz=3)
    with pytest.raises(AttributeError):
        tokenizer_training_config().loss.weights.colour = 1.0


@pytest.mark.parametrize("preset", PRESETS)
def test_the_demo_has_clips_that_each_preset_divides(preset):
    config, _ = parse(f"--config={DEMO}:{preset}")
    assert config.model.tokenizer.grids == preset
    for part in (config.data, config.calibration, config.report):
        for bucket in parse_buckets(part.buckets):
            for stride in PRESETS[preset]:
                assert all(grid_shape(stride, bucket.frames, bucket.height, bucket.width))


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_the_recipe_for_pods_has_the_published_values(stage):
    config, _ = parse(f"--config=configs/tpu_v5.py:{stage}")
    assert config.steps == {"stage1": 30_000, "stage2": 60_000, "stage3": 180_000}[stage]
    assert config.batch_size == (256 if stage == "stage3" else 512)
    assert config.optimizer.learning_rate == 1e-5
    assert bool(config.loss.weights.autoregressive) == (stage != "stage1")
    buckets = parse_buckets(config.data.buckets)
    sides = [(bucket.height, bucket.width) for bucket in buckets]
    assert all(h % 32 == 0 and w % 32 == 0 for h, w in sides)
    assert (128, 128) in sides if stage == "stage3" else (512, 512) in sides
    assert {bucket.frames for bucket in buckets} == {17, 49, 97}


def test_a_mistake_on_the_command_line_is_one_line_and_code_2(tmp_path):
    (tmp_path / "file").write_text("")
    result = subprocess.run(
        [sys.executable, "-m", "pyratok_jax.train", f"--workdir={tmp_path / 'file'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2 and not result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "is a file; name a folder" in lines[0]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("named", ["demo:smoke", "configs/demo.py:smoke", "demo.py:smoke"])
def test_configs_are_found_by_name_in_any_folder(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, workdir = parse("--config", named, "--config.steps=3")
    assert config.steps == 3 and config.calibration.steps == 5 and str(workdir) == "runs/demo"
    assert parse(f"--config={named}")[0].data.buckets == ("5x64x64",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=dmeo"], "did you mean demo?"),
        (["--config=configs/dmeo.py"], "did you mean demo?"),
        (["--confg.steps=3"], "did you mean --config.steps?"),
        (["--config.stepss=3"], "no config.stepss; did you mean 'steps' instead of 'stepss'?"),
        (["--config.loss.nothere=3"], "there is no config.loss.nothere (--help lists all keys)"),
        (["--config.steps.x=3"], "there is no config.steps.x (--help lists all keys)"),
        (["--config.steps=two"], "--config.steps=two: 'two' is no whole number"),
        (["--config=tpu_v5:nope"], "tpu_v5:nope: tpu_v5.py:nope: expected one of stage1"),
        (["--config.optimizer.learning_rate=fast"], "'fast' is no number"),
        (["--config.report.lpips=maybe"], "'maybe' is neither true nor false"),
    ],
)
def test_a_slip_of_the_pen_is_named_with_what_was_meant(arguments, message):
    with pytest.raises(UserError) as refused:
        parse(*arguments)
    assert message in str(refused.value) and "\\n" not in str(refused.value)


@pytest.mark.parametrize("config", ["demo", "tpu_v5:stage3", "generator", "vqa_projector"])
def test_the_help_has_examples_and_every_key_within_80_columns(config, capsys):
    with pytest.raises(SystemExit) as end:
        parse("--config", config, "--help")
    text = capsys.readouterr().out
    assert end.value.code == 0 and "examples:" in text and "Exit codes" in text
    assert "--config.optimizer.learning_rate=" in text and "peak learning rate" in text
    assert max(map(len, text.splitlines())) <= 80
