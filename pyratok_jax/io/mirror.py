"""Local folders whose files are kept on a storage service as well, and the reverse.

Objects of a storage service cannot be appended to. What grows (logs, traces) is written to a local
folder, whose changed files are uploaded from time to time, each as a whole. What libraries open
only on a disk (weights, ArrayRecord files) is downloaded to a cache first.
"""

import contextlib
import fnmatch
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from etils import epath

from pyratok_jax.io.atomic import atomic_path, publish
from pyratok_jax.io.remote import AnyPath, is_remote, open_path

_CACHE = "PYRATOK_CACHE"


class Mirror:
    """The folder in which files of `target` are written: itself, or a local one for a remote one.

    Attributes:
        folder: where to write.
    """

    def __init__(self, target: AnyPath, period: float = 30.0) -> None:
        """Begin with an empty local folder.

        Args:
            target: the folder that holds the files in the end, local or remote.
            period: least seconds between two uploads by `push`.
        """
        self._target = epath.Path(target) if is_remote(target) else None
        self._scratch = tempfile.TemporaryDirectory(prefix="pyratok-") if self._target else None
        self.folder = Path(self._scratch.name) if self._scratch else Path(target)
        self._period, self._pushed = period, time.monotonic()
        self._known: dict[Path, tuple[int, int]] = {}

    def push(self, *, now: bool = False) -> None:
        """Upload what has changed, at most once per period unless `now`."""
        if self._target is None or (not now and time.monotonic() - self._pushed < self._period):
            return
        for path in sorted(self.folder.rglob("*")):
            if not path.is_file():
                continue
            found = path.stat()
            state = found.st_size, found.st_mtime_ns
            if self._known.get(path) != state:
                place = self._target / path.relative_to(self.folder).as_posix()
                with atomic_path(place) as copy:
                    shutil.copyfile(path, copy)
                self._known[path] = state
        self._pushed = time.monotonic()

    def close(self) -> None:
        """Upload the rest and remove the local folder."""
        if self._scratch is not None:
            self.push(now=True)
            self._scratch.cleanup()


class OutputFolder:
    """A command's results: written to a local folder, and uploaded where the target is remote.

    Attributes:
        folder: where to write.
    """

    def __init__(self, target: AnyPath, folder: Path) -> None:
        """A target, and the local folder that stands for it: the target itself if it is local."""
        self._target, self.folder = target, folder

    def place(self, path: Path) -> AnyPath:
        """Where a file below `folder` is in the end."""
        return self._target / path.relative_to(self.folder).as_posix()

    def send(self) -> None:
        """Upload what is finished so far, and make room; of a local folder there is nothing to do.

        Files appear one by one; scratch files of `atomic_path` are not sent.
        """
        if not is_remote(self._target):
            return
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.name.startswith(".part-"):
                publish(path, self.place(path))


@contextlib.contextmanager
def output_folder(target: str | os.PathLike) -> Iterator[OutputFolder]:
    """The folder for a command's results, local or remote.

    Args:
        target: files of a remote one are uploaded by `send`, and those that are left when the block
            ends, also when it ends with an error: what is finished is kept.
    """
    if not is_remote(target):
        yield OutputFolder(Path(target), Path(target))
        return
    with tempfile.TemporaryDirectory(prefix="pyratok-") as scratch:
        output = OutputFolder(open_path(target), Path(scratch))
        try:
            yield output
        finally:
            output.send()


def cached_file(path: str | os.PathLike) -> Path:
    """The local file, or a local copy of a remote one, which is downloaded once.

    Copies lie in the cache of fetched files (`assets.fetch`), which is the user's own. A file that
    has changed is downloaded again.

    Raises:
        FileNotFoundError: there is none.
    """
    if not is_remote(path):
        return Path(path)
    source = open_path(path)
    found = source.stat()
    key = hashlib.sha256(f"{source}|{found.length}|{found.mtime}".encode()).hexdigest()[:24]
    cache = Path(os.environ.get(_CACHE) or Path.home() / ".cache" / "pyratok_jax")
    copy = cache / "storage" / key / source.name
    if not copy.is_file():
        with (
            atomic_path(copy) as scratch,
            source.open("rb") as remote,
            scratch.open("wb") as local,
        ):
            shutil.copyfileobj(remote, local, 1 << 24)
    return copy


def cached_folder(path: str | os.PathLike, only: Sequence[str] = ("*",)) -> Path:
    """A local copy of the files below a remote folder, each by `cached_file`; local ones stay.

    Args:
        path: of the folder.
        only: patterns of the names of files in the folder itself that are wanted; with "*" the
            files of folders in it as well.

    Raises:
        FileNotFoundError: there is none.
    """
    if not is_remote(path):
        return Path(path)
    source = open_path(path)
    files = {
        file.relative_to(source).as_posix(): file
        for file in files_below(source)
        if any(fnmatch.fnmatch(file.relative_to(source).as_posix(), one) for one in only)
    }
    if not files:
        raise FileNotFoundError(f"{path} holds no file")
    copies = {name: cached_file(file) for name, file in files.items()}
    key = hashlib.sha256("|".join(map(str, copies.values())).encode()).hexdigest()[:24]
    folder = next(iter(copies.values())).parents[1] / key / source.name
    for name, copy in copies.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.link(copy, folder / name)
    return folder


def files_below(folder: AnyPath) -> Iterator[AnyPath]:
    """All files below a folder, local or remote, sorted."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from files_below(entry)
        else:
            yield entry
