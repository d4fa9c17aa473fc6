"""Partial results on disk: one file per item, complete or absent, shared by all processes."""

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.framework import Partial

_JSON = "json"
_ERROR = "broken"


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Write a file that is seen complete or not at all; folders are made as needed."""
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".{target.name}.{os.getpid()}.part"
    scratch.write_bytes(data)
    scratch.replace(target)


class PartialStore:
    """The partial results of one run, in `folder`.

    The run's identity lies beside them: a folder never mixes results of different runs.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = epath.Path(folder)

    def claim(self, identity: dict[str, Any]) -> None:
        """Bind the folder to a run, or check that it belongs to the same one.

        Raises:
            UserError: it holds partial results of another run.
        """
        path = self.folder / "run.json"
        identity = json.loads(json.dumps(identity))
        if not path.exists():
            write_atomic(path, json.dumps(identity, indent=1).encode())
            return
        try:
            stored = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(
                f"{path} is not JSON ({error}); remove its folder or name another --output"
            ) from error
        for key in sorted(stored.keys() | identity.keys()):
            if stored.get(key) != identity.get(key):
                raise UserError(
                    f"{self.folder.parent} holds results of a run with another {key}: "
                    f"{_short(stored.get(key))} there, {_short(identity.get(key))} now; "
                    "name a new --output or pass --restart"
                )

    def path(self, item: str) -> epath.Path:
        """Where the partial result of an item lies."""
        digest = hashlib.sha256(item.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}.npz"

    def save(self, item: str, partial: Partial) -> None:
        """Store a partial result: arrays as they are, all else as JSON."""
        arrays = {k: v for k, v in partial.items() if isinstance(v, np.ndarray)}
        plain = {k: v for k, v in partial.items() if k not in arrays}
        text = json.dumps({"id": item, "values": plain}, allow_nan=True)
        content: dict[str, Any] = {f"a_{key}": value for key, value in arrays.items()}
        content[_JSON] = np.frombuffer(text.encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **content)
        write_atomic(self.path(item), buffer.getvalue())

    def save_broken(self, item: str, reason: str) -> None:
        """Record that an item cannot be evaluated."""
        self.save(item, {_ERROR: reason})

    def load(self, item: str) -> Partial | None:
        """The partial result of an item, or None where there is none (or a damaged one)."""
        try:
            data = self.path(item).read_bytes()
        except (FileNotFoundError, OSError):
            return None
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                record = json.loads(file[_JSON].tobytes())
                arrays = {key[2:]: file[key] for key in file.files if key.startswith("a_")}
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return {**record["values"], **arrays} if record.get("id") == item else None

    def remove(self) -> None:
        """Forget everything."""
        if self.folder.exists():
            self.folder.rmtree()


def broken_reason(partial: Partial) -> str | None:
    """Why an item could not be evaluated; None for one that could."""
    return partial.get(_ERROR)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def local_path(path: epath.Path) -> Path:
    """The same path for code that writes local files only."""
    return Path(os.fspath(path))
