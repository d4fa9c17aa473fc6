"""Compiled programs are kept between runs, where the user has not said otherwise."""

import os
import stat
import subprocess
import sys

import pytest

from pyratok_jax.assets import programs
from pyratok_jax.assets.fetch import CACHE_VARIABLE

COMPILE = """
from pyratok_jax.assets.programs import keep_programs
folder = keep_programs()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x + 1)(jax.numpy.ones(3)).block_until_ready()
print(folder)
"""


def test_a_program_is_found_again_and_nobody_else_can_write_it(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != programs.VARIABLE}
    environment |= {CACHE_VARIABLE: str(tmp_path), "JAX_PLATFORMS": "cpu"}
    kept = []
    for _ in range(2):
        said = subprocess.run(
            [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
        )
        assert said.returncode == 0 and said.stdout.strip() == str(tmp_path / "programs")
        files = (tmp_path / "programs").glob("*-cache")
        kept.append({file.name: file.stat().st_mtime_ns for file in files})
    assert kept[0] and kept[0] == kept[1]
    assert stat.S_IMODE((tmp_path / "programs").stat().st_mode) == 0o700


@pytest.mark.parametrize(("value", "expected"), [("", None), ("/elsewhere", "/elsewhere")])
def test_what_the_user_has_set_holds(monkeypatch, value, expected):
    monkeypatch.setenv(programs.VARIABLE, value)
    found = programs.keep_programs()
    assert (found and str(found)) == expected
    assert os.environ[programs.VARIABLE] == value


def test_without_a_place_nothing_is_kept(monkeypatch, tmp_path):
    monkeypatch.delenv(programs.VARIABLE, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    assert programs.keep_programs() is None
    assert programs.VARIABLE not in os.environ
