"""Keeping two exporters off the same output."""

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from pyratok_jax.errors import UserError


@contextlib.contextmanager
def export_lock(output: str, index: int, count: int) -> Iterator[None]:
    """Hold the place of exporter `index` of `count` on an output folder.

    Exporters of one run may work side by side; the same place twice, or runs with another count,
    may not. The locks end with the process, however it ends. Remote folders (with ://) have no
    locks.

    Raises:
        UserError: another exporter is at work there.
    """
    if "://" in output:
        yield
        return
    folder = Path(output)
    own = folder / f".lock.{index}-of-{count}"
    with own.open("a+") as file:
        if not _try_lock(file.fileno()):
            raise _occupied(own)
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            # The own place first: of two that start at once, none can miss the other.
            for other in sorted(folder.glob(".lock.*-of-*")):
                match = re.fullmatch(r"\.lock\.\d+-of-(\d+)", other.name)
                if match and int(match.group(1)) != count and _is_held(other):
                    raise _occupied(other)
            yield
        finally:
            file.truncate(0)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(path: Path) -> bool:
    with path.open("r") as file:
        return not _try_lock(file.fileno())


def _occupied(lock: Path) -> UserError:
    place = lock.name.removeprefix(".lock.").replace("-", " ")
    owner = lock.read_text().strip() or "another process"
    return UserError(
        f"{owner} is exporting to {lock.parent} (as part {place}); wait for it to end, stop it, or "
        "give another --output"
    )
