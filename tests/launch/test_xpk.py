"""The workload of the GKE launcher: arguments, its container's command, XPK's own dry run."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.launch.test_launch import CLUSTER, CONFIG, LAUNCH, dry, run

RELEASE = "xpk==1.16.0"
# Braces, quotes and blanks: XPK writes the command into a template, and that into YAML.
AWKWARD = "--config.evaluators=({'name': 'held out', 'every': 50},)"


def test_a_cluster_gets_a_workload_that_restarts():
    (workload,) = dry("gke_xpk.sh", **CLUSTER, SLICES="2")
    assert workload.startswith("xpk workload create --workload=pyratok --cluster=c")
    assert "--tpu-type=v5p-128 --num-slices=2" in workload and "--max-restarts=10" in workload
    # XPK's own list begins at 127: lost processes and defects must be named, mistakes must not.
    assert "--restart-on-exit-codes=1,3" in workload.replace("\\", "")
    assert "--workdir=gs://films/pyratok" in workload and "gcsfuse" not in workload


def run_container(inside, folder, stop):
    """The command of a container, with a Python that stands in for the training.

    Args:
        inside: what its shell gets.
        folder: for what the stand-in leaves.
        stop: whether the container is told to go once the training has begun.

    Returns:
        Exit code and what was printed.
    """
    program = folder / "python"
    program.write_text(
        "#!/bin/bash\n"
        'if [ "$2" = pyratok_jax.pods.keep_log ]; then\n'
        '  cp "$3" kept; echo "$4" > where; exit 1\nfi\n'
        "trap 'echo saving; sleep 1; exit 130' TERM\n"
        'printf "%s\\n" "$@"; touch "$STARTED"\n'
        + ("while true; do sleep 0.1; done\n" if stop else "exit 3\n")
    )
    program.chmod(0o755)
    started = folder / "started"
    process = subprocess.Popen(
        ["bash", "-c", inside.replace("/app", str(folder))],
        env={"PATH": f"{folder}:/usr/bin:/bin", "STARTED": str(started)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if stop:
        while not started.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert (folder / "where").read_text() == "gs://films/pyratok/logs\n"
    return process.returncode, printed


@pytest.mark.parametrize(("stop", "code"), [(False, 3), (True, 130)])
def test_a_container_hands_on_signals_and_codes_and_keeps_its_log(tmp_path, stop, code):
    """XPK runs its command in a shell of its own, to which it hands SIGTERM."""
    (written,) = run("gke_xpk.sh", "--dry-run", *CONFIG, **CLUSTER).stdout.splitlines()
    (inside,) = [part for part in shlex.split(written) if part.startswith("--command=")]
    ended, printed = run_container(inside.removeprefix("--command="), tmp_path, stop)
    assert ended == code and (tmp_path / "kept").read_text() == printed
    assert "-m\npyratok_jax.train\n--config\nconfigs/tpu_v5.py:stage1\n" in printed
    assert ("saving" in printed) == stop


@pytest.fixture(scope="module")
def xpk(tmp_path_factory):
    """XPK in an environment of its own; every workload is a dry run and leaves its manifest."""
    folder = tmp_path_factory.mktemp("xpk")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [folder / "venv/bin/pip", "install", "--quiet", RELEASE]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{RELEASE} cannot be installed: {done.stderr[-300:]}")
    script = folder / "bin" / "xpk"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/bash\nexec {folder}/venv/bin/xpk "$@" --dry-run '
        f"--output-manifest-file={folder}/manifest.yaml\n"
    )
    script.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [(False, 3), (True, 130)])
def test_xpks_own_dry_run_takes_the_workload(xpk, tmp_path, stop, code):
    done = subprocess.run(
        ["bash", LAUNCH / "gke_xpk.sh", *CONFIG, AWKWARD], capture_output=True, text=True,
        env=os.environ | CLUSTER | {"SLICES": "2", "PROJECT": "p", "HOME": str(tmp_path),
                                    "PATH": f"{xpk / 'bin'}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    job = yaml.safe_load((xpk / "manifest.yaml").read_text())["spec"]
    (slices,) = job["replicatedJobs"]
    pods = slices["template"]["spec"]
    container = pods["template"]["spec"]["containers"][0]
    assert job["failurePolicy"]["maxRestarts"] == 10 and slices["replicas"] == 2
    restarts = pods["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert {1, 3, 130, 137} <= set(restarts) and not {0, 2, 4} & set(restarts)
    assert pods["template"]["spec"]["terminationGracePeriodSeconds"] == 300
    assert container["image"] == CLUSTER["IMAGE"]
    ended, printed = run_container(container["command"][-1], tmp_path, stop)
    assert ended == code and f"\n{AWKWARD}\n--config.multi_host=true\n" in printed
    assert (tmp_path / "kept").read_text() in printed
