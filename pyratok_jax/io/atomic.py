"""Files that are seen complete or not at all: written beside their place and then renamed.

Paths may be local or remote (anything `epath` opens). A crash leaves a hidden scratch file at most;
processes that write the same file at the same time do not disturb each other.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from etils import epath


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[epath.Path]:
    """A scratch path beside `path`, with its suffix; renamed to it when the block ends.

    When the block raises, the scratch file is removed and a file already at `path` stays. Missing
    parent folders are made.
    """
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".part-{os.getpid()}-{target.name}"
    try:
        yield scratch
        scratch.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as scratch:
        scratch.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a file atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = 1) -> None:
    """Write a JSON file atomically, with a newline at its end."""
    write_text(path, json.dumps(value, indent=indent) + "\n")
