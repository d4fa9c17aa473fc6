"""Saving what 8 devices hold copies of."""

import json

import pytest

from tests.processes import run_script


@pytest.mark.process
def test_a_save_compiles_nothing(tmp_path):
    done = run_script("save_replicated_state", tmp_path / "run", devices=8)
    assert json.loads(done.stdout) == {"compiled": 0, "same": True, "data": {"step": 0}}
    assert "handler" not in done.stderr
