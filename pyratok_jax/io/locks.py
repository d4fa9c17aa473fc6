"""Locks of folders that one command may write to at a time.

A lock ends with its process, however that ends, so there are no stale ones: a lock file that no
process holds is taken over. On a storage service a lock is an object, made on the condition that
there is none, which its holder writes again every few seconds: one that stays as it is has no
holder any more.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from etils import epath

from pyratok_jax.errors import UserError
from pyratok_jax.io.remote import create, generation, is_remote, remove_generation

# Seconds between two writes of a remote lock; one that stays as it is for longer has no holder.
_RENEWED, _EXPIRES = 15.0, 60.0
# Marks of the remote locks that this process holds.
_HELD: set[str] = set()


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
    with _opened(own) as file:
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
    own, mark, ended = folder / name, uuid.uuid4().hex[:16], threading.Event()
    _HELD.add(mark)
    try:
        _claim(own, mark, what, advice)
    except BaseException:
        _HELD.discard(mark)
        raise

    def renew() -> None:
        number = 0
        while not ended.wait(_RENEWED):
            number += 1
            with contextlib.suppress(Exception):  # The next one is soon enough.
                # Not that of a process which found this one asleep and took the place.
                if mark in own.read_text():
                    own.write_text(f"{_me()}, mark {mark}, renewed {number} times since {began}")

    began = time.strftime("%Y-%m-%d %H:%M:%S")
    thread = threading.Thread(target=renew, name="remote-lock", daemon=True)
    thread.start()
    try:
        # The own place first: of two that start at once, none can miss the other.
        for other in sorted(folder.glob(".lock.*-of-*")):
            if not other.name.endswith(f"-of-{count}") and _is_renewed(other):
                raise _occupied(other, what, advice)
        yield
    finally:
        ended.set()
        thread.join()
        _HELD.discard(mark)
        with contextlib.suppress(Exception):
            if mark in own.read_text():
                own.unlink(missing_ok=True)


def _claim(own: epath.Path, mark: str, what: str, advice: str) -> None:
    """Make a remote lock, which only one process can; of one without a holder take the place.

    Raises:
        UserError: it has a holder.
    """
    text = f"{_me()}, mark {mark}"
    while not create(own, text.encode()):
        try:
            found = generation(own)
            # A request that the client repeated may have found what it made itself.
            if mark in own.read_text():
                return
            if _is_renewed(own) or not remove_generation(own, found):
                raise _occupied(own, what, advice)
        except FileNotFoundError:
            continue  # Its holder has just ended.


@contextlib.contextmanager
def _opened(own: Path) -> Iterator[TextIO]:
    """A lock file, made where there is none; a link is not followed: it is emptied and written to.

    Raises:
        UserError: a link, folder, pipe or device has its name.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(own, flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise UserError(f"{own} is no regular file: remove it") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{own} is no regular file: remove it")
    with os.fdopen(descriptor, "r+") as file:
        yield file


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _is_renewed(lock: epath.Path) -> bool:
    """Whether a remote lock has a holder: found at once for a process of this machine."""
    try:
        before = lock.read_bytes().decode(errors="replace")
        match = re.match(r"process (\d+) on (\S+?)(?:,|$)(?: mark (\w+))?", before)
        if match and match[2] == socket.gethostname():
            if match[1] == str(os.getpid()):
                # Containers that are started again have the number that they had before.
                return match[3] in _HELD
            if not Path(f"/proc/{match[1]}").exists():
                return False
        end = time.monotonic() + _EXPIRES
        while time.monotonic() < end:
            time.sleep(1.0)
            if lock.read_bytes().decode(errors="replace") != before:
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
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("r") as file:
        return not _try_lock(file.fileno())


def _occupied(lock: Path | epath.Path, what: str, advice: str) -> UserError:
    place = lock.name.removeprefix(".lock.").replace("-", " ")
    written = lock.read_bytes().decode(errors="replace").strip()
    owner = re.sub(r", mark \w+", "", written) or "another process"
    return UserError(
        f"{owner} is {what} {lock.parent} (as part {place}); wait for it to end, stop it, or "
        f"{advice}"
    )
