"""Atomic writes: the old file until the new one is complete, and no scratch file afterwards."""

import errno
import json
import os

import numpy as np
import pytest
from PIL import Image

from pyratok_jax.errors import UserError, environment_reason
from pyratok_jax.io import atomic
from pyratok_jax.io.atomic import (
    atomic_folder,
    atomic_path,
    new_folder,
    publish,
    write_bytes,
    write_json,
    write_npz,
    write_png,
    write_text,
)


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


def test_arrays_and_pictures(tmp_path):
    write_npz(tmp_path / "a.npz", compress=True, counts=np.arange(3))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["counts"], [0, 1, 2])
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    write_png(tmp_path / "a.png", pixels)
    write_png(tmp_path / "b.png", Image.fromarray(pixels))
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), pixels)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    path, flushed = tmp_path / "a", []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (flushed.append(path.exists()), real(d)))
    write_text(path, "x")
    assert flushed == [False, True]  # The file itself, then the folder that names it.


def test_publishing_moves_a_file(tmp_path, monkeypatch):
    for copied in (False, True):
        local, target = tmp_path / "local", tmp_path / "out" / f"{copied}"
        local.write_text("x")
        if copied:  # As if on another disk: no rename is possible, the bytes are copied.
            monkeypatch.setattr(atomic, "is_remote", lambda path: True)
        publish(local, target)
        assert target.read_text() == "x" and not local.exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["False", "True"]


def test_a_folder_appears_whole_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "deep" / "folder"
    for content in ("first", "second"):
        with atomic_folder(path) as scratch:
            (scratch / content).write_text(content)
            assert not (path / content).exists()
        assert [p.name for p in path.iterdir()] == [content]
    with pytest.raises(ValueError), atomic_folder(path) as scratch:
        (scratch / "third").write_text("half")
        raise ValueError
    assert [p.name for p in path.iterdir()] == ["second"]
    assert [p.name for p in path.parent.iterdir()] == ["folder"]


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="cannot write .*file/folder"),
        new_folder(tmp_path / "file" / "folder"),
    ):
        raise AssertionError("the block must not run")
    path = tmp_path / "folder"
    with pytest.raises(UserError, match="cannot write .*folder: No space left"), new_folder(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with new_folder(path) as folder:
        (folder / "content").write_text("x")
    assert [p.name for p in path.iterdir()] == ["content"]


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(IsADirectoryError, match="a.json") as caught:
        atomic.write_json(tmp_path / "a.json", {})
    assert "Is a directory" in environment_reason(caught.value)
