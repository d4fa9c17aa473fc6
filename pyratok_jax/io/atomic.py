"""Files and folders that are seen complete or not at all: written beside their place, then renamed.

Paths may be local or remote (anything `epath` opens). Local files are flushed to the disk before
they are renamed, so that a machine that loses power leaves the old file or the new one. A crash
leaves a hidden scratch file at most; writers of the same file do not disturb each other.

An object of a storage service appears when its upload is complete: it is written to a local
scratch file first, and uploaded when that is finished.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from etils import epath
from PIL import Image

from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.remote import is_remote

PathLike = str | os.PathLike
# Below the 255 bytes of file systems, with room for endings and for scratch names.
_LONGEST_NAME = 200
_WHOLE = 64 << 20  # Bytes of a file that is uploaded in one piece.


def short_name(name: str, origin: str | None = None) -> str:
    """A file name of at most 200 bytes: longer ones are cut and end in a hash of the whole.

    Args:
        name: without folders.
        origin: what the hash is of, where that is not the name.
    """
    data = os.fsencode(name)
    if len(data) <= _LONGEST_NAME:
        return name
    whole = (name if origin is None else origin).encode("utf-8", "surrogatepass")
    mark = hashlib.sha256(whole).hexdigest()[:16]
    return f"{data[: _LONGEST_NAME - 17].decode('utf-8', 'ignore')}-{mark}"


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[epath.Path]:
    """A scratch path, with the suffix of `path`, which becomes it when the block ends.

    It lies beside a local path and is renamed; for a remote one it is a local file and is uploaded.
    When the block raises, the scratch file is removed and a file already at `path` stays. Missing
    parent folders are made.
    """
    target = epath.Path(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            local = epath.Path(folder) / target.name
            yield local
            _upload(local, target)
        return
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".part-{uuid.uuid4().hex[:8]}-{target.name}"
    try:
        yield scratch
        _flush(scratch)
        scratch.replace(target)
        _flush(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def _upload(local: epath.Path, target: epath.Path) -> None:
    """Copy a local file to a storage service, where it appears whole.

    What is left open by an error must not be closed as if it were complete: so the file is read
    before the upload begins, in parts only where it is large.
    """
    if local.stat().length <= _WHOLE:
        target.write_bytes(local.read_bytes())
        return
    with local.open("rb") as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 24)


def _flush(path: epath.Path) -> None:
    """Have the system write a local file, or the names in a folder, to the disk."""
    if is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write a file atomically."""
    if is_remote(path):
        epath.Path(path).write_bytes(data)
        return
    with atomic_path(path) as scratch:
        scratch.write_bytes(data)


def write_text(path: PathLike, text: str) -> None:
    """Write a file atomically, as UTF-8; bytes of names that are no UTF-8 become escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: PathLike, value: Json, *, indent: int | None = 1) -> None:
    """Write a JSON file atomically, with a newline at its end."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_npz(path: PathLike, *, compress: bool = False, **arrays: np.ndarray) -> None:
    """Write NumPy arrays by name as one npz file, atomically."""
    save = np.savez_compressed if compress else np.savez
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        save(file, allow_pickle=False, **arrays)


def write_png(path: PathLike, picture: Image.Image | np.ndarray) -> None:
    """Write a PNG file atomically: a picture, or its pixels, uint8 (h, w) or (h, w, 3)."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        image.save(file, "PNG")


def publish(local: Path, path: PathLike) -> None:
    """Move a finished local file to its place, local or remote, atomically."""
    target = epath.Path(path)
    if is_remote(target):
        _upload(epath.Path(local), target)
        local.unlink()
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.stat(target.parent).st_dev == os.stat(local).st_dev:
        _flush(epath.Path(local))
        os.replace(local, target)
        _flush(target.parent)
        return
    with atomic_path(target) as scratch, local.open("rb") as source, scratch.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
    local.unlink()


@contextlib.contextmanager
def atomic_folder(path: PathLike) -> Iterator[Path]:
    """A local scratch folder beside `path`, which takes its place when the block ends.

    A folder already at `path` is moved aside first and removed last; when the block raises, it
    stays, and the scratch folder is removed. Missing parent folders are made.

    Raises:
        OSError: the folder cannot be made or renamed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True
    ) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        yield new
        if not target.exists():
            os.replace(new, target)
            return
        os.replace(target, old)
        try:
            os.replace(new, target)
        except OSError:
            os.replace(old, target)
            raise


@contextlib.contextmanager
def new_folder(path: PathLike, last: str = "") -> Iterator[Path]:
    """`atomic_folder` for a command's output, where a failed write is for the user to mend.

    Args:
        path: local, or remote: then its files are made on the local disk and uploaded when the
            block ends, since services have no folders that could appear at once.
        last: the file in it without which nobody reads the folder; it is uploaded last.

    Raises:
        UserError: the folder, or a file that the block writes, cannot be written.
    """
    try:
        if not is_remote(path):
            with atomic_folder(path) as folder:
                yield folder
            return
        with tempfile.TemporaryDirectory(prefix="pyratok-") as scratch:
            yield Path(scratch)
            files = [file for file in sorted(Path(scratch).rglob("*")) if file.is_file()]
            for file in sorted(files, key=lambda file: file == Path(scratch) / last):
                name = file.relative_to(scratch).as_posix()
                _upload(epath.Path(file), epath.Path(path) / name)
    except OSError as error:
        raise UserError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error
