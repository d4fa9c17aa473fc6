"""Where decoded videos are written: names from untrusted ids, and files that replace nothing."""

import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pyratok_jax.io.atomic import short_name, write_png

_LONGEST_PATH = 1024


class OutputExistsError(Exception):
    """A place that cannot be written without replacing or leaving what this run did not make."""


class Taken:
    """Paths that a run has begun.

    Those that differ in their case or in how accents are composed are one file on many disks.
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._paths: set[str] = set()
        self._above: set[str] = set()
        for path in paths:
            self.add(path)

    def add(self, path: Path) -> None:
        """Take a path."""
        self._paths.add(_key(path))
        for parent in path.parents:
            if (key := _key(parent)) in self._above:
                break
            self._above.add(key)

    def __contains__(self, path: Path) -> bool:
        return _key(path) in self._paths

    def is_above(self, path: Path) -> bool:
        """Whether a taken path lies inside of this one."""
        return _key(path) in self._above


def _key(path: Path) -> str:
    return unicodedata.normalize("NFC", os.fspath(path)).casefold()


def output_path(folder: Path, name: str, still: bool, crf: int | None, taken: Taken) -> Path:
    """Where a video is written: its id below the folder, with a suffix that tells what it is.

    Args:
        folder: the output folder; the result is inside it.
        name: the video's id, any text.
        still: one picture (`.png`).
        crf: None: a folder of frames; else an mp4 file.
        taken: what this run has begun already; no output is placed at, in or above one of them.
    """
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]
    if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_PATH:
        parts = ["/".join(parts)]
    suffix = ".png" if still else "" if crf is None else ".mp4"
    path = folder
    for part in parts[:-1]:
        path = path / _component(part)
        while path in taken:
            path = path.with_name(short_name("_" + path.name))
    path = path / _component(parts[-1] if parts else "video")
    if not path.name.lower().endswith(suffix) or path in taken:
        path = path.with_name(path.name + suffix)
    while path in taken or taken.is_above(path):
        stem = path.name.removesuffix(suffix)
        path = path.with_name(short_name(f"_{stem}") + path.name[len(stem) :])
    return path


def _component(text: str) -> str:
    """A visible file name of at most 200 bytes; cut names end in a hash of the text."""
    # Controls, also those that turn the direction of a terminal's text; what other systems reserve.
    clean = re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069/:*?\"<>|]", "_", text)
    clean = "_" + clean[1:] if clean.startswith((".", "-", " ")) else clean
    return short_name(clean.encode("utf-8", "replace").decode(), text)


def check_free(folder: Path, path: Path) -> None:
    """Refuse an output that exists, or that a link would place outside the folder.

    Raises:
        OutputExistsError: naming what is in the way.
    """
    if os.path.lexists(path):
        raise OutputExistsError(f"{path} exists and is kept; remove it, or give another --output")
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise OutputExistsError(f"{path.parent} is a link out of {folder}; give another --output")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise OutputExistsError(f"{parent} is a file and is kept; give another --output")


class FrameFolder:
    """A folder of numbered PNG files, which appears when it is complete; it replaces nothing."""

    def __init__(self, path: Path, first: int) -> None:
        self.path, self._number = path, first
        self._scratch = path

    def __enter__(self) -> "FrameFolder":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=self.path.parent))
        self._scratch.chmod(0o755)
        return self

    def write(self, frame: np.ndarray) -> None:
        """The next frame."""
        Image.fromarray(frame).save(self._scratch / f"{self._number:06d}.png")
        self._number += 1

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                # Fails where a file or a folder with content has appeared in the meantime.
                self._scratch.rename(self.path)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)


class StillWriter:
    """One PNG file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "StillWriter":
        return self

    def write(self, frame: np.ndarray) -> None:
        """The picture."""
        write_png(self.path, frame)

    def __exit__(self, *_: object) -> None:
        pass
