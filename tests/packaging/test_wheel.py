"""The built wheel, away from the repository: configs by name, commands, type hints."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*words, folder, path=""):
    """The finished process, with the packages below `path` in front of all others."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(path)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The content of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: building leaves folders in the source tree.
    source = folder / "source"
    source.mkdir()
    for name in ("pyratok_jax", "weights_conversion", "configs", "setup.py", "pyproject.toml",
                 "README.md", "LICENSE"):  # fmt: skip
        (source / name).symlink_to(ROOT / name)
    code = (
        "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    )
    built = run("-c", code, folder, folder=source)
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_it_holds_configs_assets_and_type_hints(installed):
    package = installed / "pyratok_jax"
    configs = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert {path.name for path in (package / "configs").glob("*.py")} == configs
    for name in ("py.typed", "assets/demo_backbone.safetensors", "training/loop/loop.py"):
        assert (package / name).is_file()
    assert (installed / "weights_conversion" / "wan_vae.py").is_file()
    tops = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"pyratok_jax", "weights_conversion"}


def test_a_config_is_found_by_name_outside_of_the_repository(installed, tmp_path):
    code = (
        "import pyratok_jax\n"
        "from pyratok_jax.training.config import parse_flags\n"
        "for name in ('tpu_v5:stage1', 'ablations:no_text'):\n"
        "    config, _ = parse_flags(['train', '--config', name], default_config='')\n"
        "    print(config.steps)\n"
        "print(pyratok_jax.__file__)\n"
    )
    done = run("-c", code, folder=tmp_path, path=installed)
    assert done.returncode == 0, done.stderr[-2000:]
    *steps, file = done.stdout.split()
    assert steps == ["30000", "100"] and Path(file).is_relative_to(installed)
