"""The image of the GKE launcher: linted, and its steps run in a clean root without Docker."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "launch" / "Dockerfile"


def steps():
    """(instruction, rest) of each line; nothing here is continued."""
    lines = [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


def copied():
    """(sources, target) of each COPY."""
    parts = [rest.split() for name, rest in steps() if name == "COPY"]
    return [(words[:-1], words[-1]) for words in parts]


def test_the_linter_finds_nothing():
    found = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([found, "--failure-threshold", "info", FILE], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


def test_everything_that_is_copied_is_there_and_not_ignored():
    lines = FILE.with_suffix(".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    wanted = {source.rstrip("/") for sources, _ in copied() for source in sources}
    assert wanted == kept
    assert all((ROOT / name).exists() for name in wanted)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"configs"}
    assert packages - {"tests", "benchmarks"} <= wanted


def build(root):
    """Run the steps in a root that holds Debian and its Python; returns the working directory."""
    variables, workdir = {"PATH": "/usr/bin:/bin", "HOME": "/root"}, "/"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name, rest in steps():
        if name == "ENV":
            variables |= dict([rest.split("=", 1)])
        elif name == "WORKDIR":
            workdir = rest
            (root / workdir[1:]).mkdir(parents=True)
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = root / workdir[1:] / target
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=ignored)
                else:
                    shutil.copyfile(ROOT / source, place / source)
        elif name == "RUN":
            run(root, workdir, rest, variables)
        else:
            assert name in ("FROM", "CMD"), name
    return workdir, variables


def run(root, workdir, command, variables):
    """A shell command in the root with these variables alone, and pip's of this process."""
    own = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    # Debian keeps its Python for itself; the image's belongs to no distribution.
    changed = own | variables | {"PIP_BREAK_SYSTEM_PACKAGES": "1"}
    done = subprocess.run(
        [shutil.which("chroot"), root, "/bin/sh", "-ec", f"cd {workdir}; {command}"],
        env=changed, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_its_steps_work_in_a_clean_root(tmp_path):
    if os.getuid() or not shutil.which("debootstrap"):
        pytest.skip("needs root and debootstrap (apt-get install debootstrap)")
    root = tmp_path / "root"
    release = steps()[0][1].rpartition("-")[2]
    packages = "ca-certificates,python-is-python3,python3-pip,python3-dev"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", release, root],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for file in ("/etc/resolv.conf", os.environ.get("PIP_CERT", "")):
        if file and Path(file).exists():
            shutil.copyfile(file, root / file[1:])
    workdir, variables = build(root)
    command = next(rest for name, rest in steps() if name == "CMD")
    shown = run(root, workdir, " ".join(json.loads(command)), variables)
    assert "--workdir" in shown
    imports = "python -c 'import gcsfs, jax, libtpu; print(jax.__version__)'"
    assert run(root, workdir, imports, variables).strip()
    shutil.rmtree(root)
