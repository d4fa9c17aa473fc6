"""Locks of folders that one command may write to at a time.

A lock ends with its process, however that ends, so there are no stale ones: a lock file that no
process holds is taken over. Remote folders (with ://) have no locks.
"""

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from pyratok_jax.errors import UserError
from pyratok_jax.io.remote import is_remote


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
        yield
        return
    place = Path(folder)
    own = place / f".lock.{index}-of-{count}"
    with own.open("a+") as file:
        if not _try_lock(file.fileno()):
            raise _occupied(own, what, advice)
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
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


def _occupied(lock: Path, what: str, advice: str) -> UserError:
    place = lock.name.removeprefix(".lock.").replace("-", " ")
    owner = lock.read_text(errors="replace").strip() or "another process"
    return UserError(
        f"{owner} is {what} {lock.parent} (as part {place}); wait for it to end, stop it, or "
        f"{advice}"
    )
