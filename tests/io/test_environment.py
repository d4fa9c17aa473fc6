"""What the machine refuses ends in one line; a folder is written to by one command at a time."""

import errno
import os
import subprocess
import sys

import pytest

from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io.locks import folder_lock


def ended(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and caught.value.code == 2
    return said[0]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "disk is full (/x/y)"),
        (ValueError("RESOURCE_EXHAUSTED: write: No space left on device"), "disk is full"),
        (OSError(errno.EMFILE, "Too many open files", "/x/y"), "ulimit -n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/y"), "/x/y: No such"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x/y"), "/x/y: Is a directory"),
    ],
)
def test_what_the_machine_refuses_is_one_line(error, message, capsys):
    assert message in ended(error, capsys)


def test_a_full_disk_below_another_error_is_seen(capsys):
    error = RuntimeError("a thread failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "disk is full" in ended(error, capsys)


@pytest.mark.parametrize("error", [KeyError("a"), FileNotFoundError("no such thing"), OSError()])
def test_a_defect_keeps_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        run_cli(main)


def test_a_folder_is_held_by_one_process_and_its_owner_is_named(tmp_path):
    with (
        folder_lock(tmp_path, 0, 1, "training in", "name another"),
        pytest.raises(UserError, match=rf"process {os.getpid()} on .* is training in"),
        folder_lock(tmp_path, 0, 1, "training in", "name another"),
    ):
        pass
    with folder_lock(tmp_path, 0, 1, "training in", "name another"):
        pass


def test_a_lock_of_a_killed_process_is_taken_over(tmp_path):
    code = (
        "import os, sys; from pyratok_jax.io.locks import folder_lock\n"
        "with folder_lock(sys.argv[1], 0, 1, 'w', 'a'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert "process" in (tmp_path / ".lock.0-of-1").read_text()
    with folder_lock(tmp_path, 0, 1, "training in", "name another"):
        pass


def test_a_missing_optional_package_is_one_line(capsys):
    def main() -> None:
        raise ModuleNotFoundError("No module named 'constriction'", name="constriction")

    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1 and "pip install constriction" in said


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_what_lies_in_a_locks_place_is_neither_emptied_nor_waited_for(tmp_path, kind):
    own, kept = tmp_path / ".lock.0-of-1", tmp_path / "letter.txt"
    kept.write_text("mine")
    if "link" in kind:
        own.symlink_to(kept if kind == "link" else tmp_path / "nowhere")
    elif kind == "folder":
        own.mkdir()
    else:
        os.mkfifo(own)
    with (
        pytest.raises(UserError, match=f"{own} is no regular file: remove it"),
        folder_lock(tmp_path, 0, 1, "training in", "name another"),
    ):
        pass
    assert kept.read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_memory_that_is_refused_is_one_line(capsys):
    assert "memory is not enough (Unable to allocate 9 GiB)" in ended(
        MemoryError("Unable to allocate 9 GiB"), capsys
    )
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")
    assert "memory is not enough (RESOURCE_EXHAUSTED: Out" in ended(error, capsys)
