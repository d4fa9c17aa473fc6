"""Atomic writes: the old file until the new one is complete, and no scratch file afterwards."""

import json

import pytest

from pyratok_jax.io.atomic import atomic_path, write_bytes, write_json, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    write_json(path, {"é": [1, 2]})
    assert json.loads(path.read_text()) == {"é": [1, 2]} and path.read_text().endswith("}\n")
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.npz"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as scratch:
        assert scratch.parent == path.parent and scratch.suffix == ".npz"
        scratch.write_text("half of the")
        assert path.read_text() == "old"
        raise error
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.npz", "old")]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []
