"""What the loop does around its steps: which checkpoints stay, traces, timing, exact resumption."""

import json
import shutil
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.training.config import parse_command, training_config
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.loop.metrics_log import read_metrics
from pyratok_jax.training.loop.monitoring import over_processes, profiled_steps
from tests.compiler_flags import plain_environment
from tests.training.processes import rows
from tests.training.worker import LineTask

pytestmark = pytest.mark.usefixtures("no_tensorboard")


def config(**changes):
    values = {"steps": 12, "batch_size": 8, "log_every": 3}
    checkpoint = {"every": 2, "keep": 2, "keep_every": 6}
    return training_config(**values | {"checkpoint": checkpoint} | changes)


def test_the_newest_checkpoints_are_kept_and_multiples_of_keep_every(tmp_path):
    train(config(), tmp_path, LineTask(8))
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert steps == [6, 10, 12]


def test_traces_are_written_for_the_wanted_steps(tmp_path, capsys):
    train(config(profile_steps="3:5"), tmp_path, LineTask(8))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert str(tmp_path / "profile") in capsys.readouterr().out


@pytest.mark.parametrize("text", ["5", "5:3", "0:2", "a:b"])
def test_other_ranges_of_steps_are_refused(text):
    with pytest.raises(UserError, match="FIRST:LAST"):
        profiled_steps(text)
    assert list(profiled_steps("4:6")) == [4, 5, 6] and not profiled_steps("")


def test_timing_is_logged_apart_from_the_metrics(tmp_path):
    train(config(), tmp_path, LineTask(8))
    timing = rows(tmp_path, "timing.jsonl")
    assert [row["step"] for row in timing] == [3, 6, 9, 12]
    assert all(row["seconds_per_step"] >= row["data_wait_max"] >= 0 for row in timing)
    assert "seconds_per_step" not in rows(tmp_path)[0]
    waits = np.array([[0.5, 0.1], [0.0, 0.6]])
    assert over_processes(waits) == {
        "data_wait_min": 0.0, "data_wait_max": 0.5, "device_wait_min": 0.1,
        "device_wait_max": 0.6, "slowest_process": 0.0,
    }  # fmt: skip


def test_flags_are_in_the_help_and_understood(capsys, tmp_path):
    def parse(*arguments):
        return parse_command(["train", *arguments], default_config="configs/demo.py")

    command = parse("--profile_steps=10:15", f"--xla_dump_to={tmp_path}")
    assert command.config.profile_steps == "10:15" and command.xla_dump_to == str(tmp_path)
    with pytest.raises(UserError, match="only files and gs"):
        parse("--workdir=http://bucket/run")
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    assert "--profile_steps" in text and "--xla_dump_to" in text and "--workdir" in text


def test_compiled_programs_are_dumped_on_request(tmp_path):
    program = (
        "from pyratok_jax.training.loop.monitoring import dump_programs\n"
        f"print(dump_programs({str(tmp_path)!r}))\n"
        "import jax\njax.jit(lambda x: x + 1)(1.0).block_until_ready()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=plain_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    folder = done.stdout.strip()
    assert folder.startswith(str(tmp_path)) and list(tmp_path.rglob("*.txt"))


def test_a_run_cut_off_between_two_logged_rows_leaves_the_rows_of_an_unbroken_one(tmp_path):
    class CutOff(LineTask):
        def __next__(self):
            if self.step == 8:
                raise RuntimeError("cut off")
            return super().__next__()

    train(config(checkpoint={"every": 4, "keep": 2, "keep_every": 0}), tmp_path / "a", LineTask(8))
    with pytest.raises(RuntimeError, match="cut off"):
        train(config(checkpoint={"every": 4, "keep": 2, "keep_every": 0}), tmp_path / "b",
              CutOff(8))  # fmt: skip
    # Saved at step 8: rows 3 and 6 stand, step 7 and 8 are part of the row to come.
    rest = train(
        config(checkpoint={"every": 4, "keep": 2, "keep_every": 0}), tmp_path / "b", LineTask(8)
    )
    assert rest.steps_run == 4
    assert rows(tmp_path / "b") == rows(tmp_path / "a")


def test_an_impossible_setting_is_refused_before_the_levels_are_fitted(tmp_path):
    wrong = config(steps=3)
    wrong.optimizer.warmup = 4
    started = []
    with pytest.raises(UserError, match="optimizer.warmup 4"):
        train(wrong, tmp_path, LineTask(8), on_start=started.append)
    assert not started


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "clu.metric_writers", Mock())
        train(config(), folder, LineTask(8))
    return folder


def damage_metrics(folder, data):
    (folder / "metrics.jsonl").write_bytes(data)


def damage_data(folder, data):
    """Of a checkpoint from before data states had a hash."""
    path = folder / "checkpoints" / "12" / "data" / "metadata"
    values = json.loads(path.read_text()) | data
    del values["data_sha256"]
    path.write_text(json.dumps(values))


def exchange_in_data(folder, pair):
    path = folder / "checkpoints" / "12" / "data" / "metadata"
    text = path.read_text()
    assert text.count(pair[0]) == 1
    path.write_text(text.replace(*pair))


@pytest.mark.parametrize(
    ("damage", "value", "message"),
    [
        (damage_metrics, b'{"step": 3, "lo\xf3s": 1}\n{"step": 6}\n', "line 1 is damaged"),
        (damage_metrics, b'{"loss": 3}\n', "line 1 .*no step"),
        (damage_data, {"loader": {"step": -5, "seed": 0}}, "its step is -5; .*an older one"),
        (exchange_in_data, ('"broken": {}', '"broken": {"a": "b"}'), "data holds other values"),
        (damage_data, {"loader": []}, "data state of the checkpoint of step 12"),
        (damage_data, {"pending": [{"loss": "x"}]}, "data state of the checkpoint of step 12"),
    ],
)
def test_a_damaged_state_is_not_resumed_from(trained, tmp_path, damage, value, message):
    shutil.copytree(trained, tmp_path / "run")
    damage(tmp_path / "run", value)
    with pytest.raises(UserError, match=message):
        train(config(steps=14), tmp_path / "run", LineTask(8))


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": NaN}\n{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [3]
