"""Devices that share frames share the language model's tokens: same numbers, a part of the work."""

import pytest

from tests.processes import run_script


@pytest.mark.process
def test_both_heads():
    run_script("sharded_language_tokens", "lookup_free", "softmax", devices=8)
