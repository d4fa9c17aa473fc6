"""Hashes of the bytes that are loaded, compared with those that were recorded.

A hash is computed once for files of a given size and time of modification
(`assets.fetch.remembered_hash`). The environment variable `PYRATOK_VERIFY=0`, which `--no-verify`
sets, leaves the comparison out.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from pyratok_jax.assets.fetch import file_hash, remembered_hash
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json

VARIABLE = "PYRATOK_VERIFY"
Arrays = Mapping[str, np.ndarray] | Iterator[tuple[str, np.ndarray]]


def enabled() -> bool:
    """Whether hashes are compared."""
    return os.environ.get(VARIABLE, "1") != "0"


def weights_hash(arrays: Arrays) -> str:
    """SHA-256 over names, dtypes, shapes and bytes in sorted order of the names.

    An iterator must already be sorted by name.
    """
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()) if isinstance(arrays, Mapping) else arrays:
        digest.update(f"{name}|{np.dtype(array.dtype).name}|{tuple(array.shape)}|".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def record_hash(values: Json) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def verify_record(where: str, values: Json, sha256: str, advice: str) -> None:
    """Compare the hash of stored settings with the recorded one.

    Args:
        where: file and key, for the message.
        values: the settings.
        sha256: recorded; empty in files that were written before there was one.
        advice: what to do, for the message.

    Raises:
        UserError: another hash.
    """
    if enabled() and sha256 and record_hash(values) != sha256:
        raise UserError(
            f"{where}: its values are not those that were written (another SHA-256 than "
            f"{sha256[:12]}); {advice}"
        )


def verify_folder(weights: Path, sha256: str, read: Callable[[], Arrays]) -> None:
    """Compare the hash of a folder's arrays with the recorded one.

    Args:
        weights: the folder, whose files say whether a hash that was found before still holds.
        sha256: recorded.
        read: the stored arrays, sorted by name; called where the hash is not known.

    Raises:
        UserError: another hash, or values that are not finite.
    """
    if not enabled():
        return
    found = remembered_hash(weights, lambda: weights_hash(_finite(weights, read())))
    if found != sha256:
        raise UserError(
            f"{weights} holds other values than were converted (SHA-256 {found[:12]}, config.json "
            f"says {sha256[:12]}): it is damaged or was replaced; convert the weights again"
        )


def verify_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Compare files of a folder with their recorded SHA-256.

    Raises:
        UserError: naming the first that is missing or differs.
    """
    for name, sha256 in hashes.items() if enabled() else ():
        path = folder / name
        if os.sep in name or not path.is_file():
            raise UserError(f"{path} is missing; convert the weights again")
        if file_hash(path) != sha256:
            raise UserError(
                f"{path} is not the file that was converted: it is damaged or was replaced; "
                "convert the weights again"
            )


def _finite(weights: Path, arrays: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in arrays.items() if isinstance(arrays, Mapping) else arrays:
        if not np.isfinite(np.asarray(array, np.float32)).all():
            raise UserError(f"{weights}: {name} has values that are not finite; get other weights")
        yield name, array
