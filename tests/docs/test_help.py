"""--help is answered at once: a command line is understood before anything heavy is imported."""

import json

import pytest

from benchmarks.command_start import commands
from tests.processes import run_script

pytestmark = pytest.mark.process


def test_no_command_loads_jax_to_show_its_help():
    found = commands()
    assert {"pyratok_jax.train", "pyratok_jax.data.prepare", "weights_conversion.vae"} <= set(found)
    loaded = json.loads(run_script("answer_help", *found).stdout)
    assert loaded == {command: [] for command in found}
