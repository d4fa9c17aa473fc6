"""Locks of folders that one command may write to at a time.

A lock ends with its process, however that ends, so there are no stale ones: a lock file that no
process holds is taken over. On a storage service a lock is an object that its holder writes again
every few seconds: one that stays as it is has no holder any more.
"""

import contextlib
import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from pyratok_jax.errors import UserError
from pyratok_jax.io.remote import is_remote

# Seconds between two writes of a remote lock; one that stays as it is for longer has no holder.
_RENEWED, _EXPIRES = 15.0, 60.0


@contextlib.contextmanager
def folder_lock(
    folder: str | os.PathLike, index: int, count: int, what: str, advice: str
) -> Iterator[None]:
    """Hold the place of process `index` of `count` on a folder.

    Processes of one run may work side by side; the same place twice, or runs with another count,
    may not. A file system without locks is used without them.

    Args:
        folder: an existing folder.
        index: of this process.
        count: of the processes that share the work.
        what: the holder does there ("exporting to"), for the message.
        advice: what to do about a folder that is taken.

    Raises:
        UserError: another process is at work there; it is named.
    """
    if is_remote(folder):
        with _remote_lock(epath.Path(folder), index, count, what, advice):
            yield
        return
    place = Path(folder)
    own = place / f".lock.{index}-of-{count}"
    with own.open("a+") as file:
        if not _try_lock(file.fileno()):
            raise _occupied(own, what, advice)
        try:
            file.truncate(0)
            file.write(_me())
            file.flush()
            # The own place first: of two that start at once, none can miss the other.
            for other in sorted(place.glob(".lock.*-of-*")):
                match = re.fullmatch(r"\.lock\.\d+-of-(\d+)", other.name)
                if match and int(match.group(1)) != count and _is_held(other):
                    raise _occupied(other, what, advice)
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


@contextlib.contextmanager
def _remote_lock(
    folder: epath.Path, index: int, count: int, what: str, advice: str
) -> Iterator[None]:
    name = f".lock.{index}-of-{count}"
    for other in sorted(folder.glob(".lock.*-of-*")):
        same_run = other.name != name and other.name.endswith(f"-of-{count}")
        if not same_run and _is_renewed(other):
            raise _occupied(other, what, advice)
    own, ended = folder / name, threading.Event()

    def renew() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            with contextlib.suppress(Exception):  # The next one is soon enough.
                own.write_text(f"{_me()}, renewed {number} times since {began}")
            ended.wait(_RENEWED)

    began = time.strftime("%Y-%m-%d %H:%M:%S")
    own.write_text(_me())
    thread = threading.Thread(target=renew, name="remote-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):
            own.unlink(missing_ok=True)


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _is_renewed(lock: epath.Path) -> bool:
    """Whether a remote lock has a holder: found at once for a process of this machine."""
    try:
        before = lock.read_text()
        match = re.match(r"process (\d+) on (\S+?)(,|$)", before)
        if match and match[2] == socket.gethostname() and not Path(f"/proc/{match[1]}").exists():
            return False
        if match and match[1] == str(os.getpid()) and match[2] == socket.gethostname():
            return True
        end = time.monotonic() + _EXPIRES
        while time.monotonic() < end:
            time.sleep(1.0)
            if lock.read_text() != before:
                return True
    except FileNotFoundError:
        pass
    return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # Mounted buckets may have no locks.
        return True
    return True


def _is_held(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("r") as file:
        return not _try_lock(file.fileno())


def _occupied(lock: Path | epath.Path, what: str, advice: str) -> UserError:
    place = lock.name.removeprefix(".lock.").replace("-", " ")
    owner = lock.read_bytes().decode(errors="replace").strip() or "another process"
    return UserError(
        f"{owner} is {what} {lock.parent} (as part {place}); wait for it to end, stop it, or "
        f"{advice}"
    )
