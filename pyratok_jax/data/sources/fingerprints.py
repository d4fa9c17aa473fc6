"""What tells one clip or shard from another without reading its file.

By it a run that is resumed knows whether its input is still the one that it was begun with.
"""

import hashlib
import os

from etils import epath

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.io import text_bytes
from pyratok_jax.io.remote import is_remote
from pyratok_jax.io.sharded_job import recorded_hash


def clip_identity(record: ClipRecord) -> bytes:
    """A line that differs where a clip, or the file that it is in, does.

    It holds the id, the caption and the span, and of the media: of a local file its name, size and
    time of change in whole seconds, however its folder is named; the address of a remote one, which
    is asked for nothing, since each answer takes a request; a hash of what is held in memory.
    """
    said = f"{record.id}\0{record.caption}\0{record.start}\0{record.end}\0{_media(record)}\n"
    return text_bytes(said)


def _media(record: ClipRecord) -> str:
    held = record.stored if record.stored is not None else (record.data,)
    digest = hashlib.sha256()
    for part in held:
        if part is not None:
            digest.update(len(part).to_bytes(8, "big") + part)
    if held != (None,):
        return digest.hexdigest()
    if record.drawing is not None or is_remote(record.path):
        return record.path
    name = os.path.basename(record.path)
    try:
        found = os.stat(record.path)
    except (OSError, ValueError):  # A name that no file can have is a ValueError.
        return name
    return f"{name}\0{found.st_size}\0{int(found.st_mtime)}"


def shard_identity(file: str) -> bytes:
    """A line that differs where a shard does: its name and the SHA-256 that its report names.

    Where no report of ours is beside it, its size and time of change stand for its content.
    """
    path = epath.Path(file)
    found = path.stat()
    content = recorded_hash(path, found.length) or f"{found.length}\0{found.mtime}"
    return text_bytes(f"{path.name}\0{content}\n")
