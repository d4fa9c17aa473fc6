"""The chunks of an ArrayRecord file (https://github.com/google/riegeli, "records format").

Only headers are looked at: what a chunk says it will be inflated to is known before it is.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_HEADER = struct.Struct("<QQQQQ")  # Hash, data size, data hash, type and records, decoded size.
_USABLE = _BLOCK - _BLOCK_HEADER
# A chunk of more bytes than this may hold at most so many times what it takes in the file.
_LARGE, _MOST = 256 << 20, 100


class Chunk(NamedTuple):
    """Offset in the file, its kind, bytes of its data, number of records, bytes once inflated."""

    offset: int
    kind: int
    size: int
    records: int
    decoded: int


def chunks(file: str | os.PathLike) -> Iterator[Chunk]:
    """The chunks of a local file in order, up to the first header that cannot be."""
    end = os.stat(file).st_size
    if not end:
        return
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as m:
        at = 0
        while at < end:
            header = _at(m, at, _HEADER.size)
            if len(header) < _HEADER.size:
                return
            _, size, _, kind, decoded = _HEADER.unpack(header)
            if size > end:
                return
            yield Chunk(at, kind & 0xFF, size, kind >> 8, decoded)
            length = _HEADER.size + size
            after = at + length + (length + (at + _USABLE - 1) % _BLOCK) // _USABLE * _BLOCK_HEADER
            # Every record has a position of its own, also where they take fewer bytes.
            least = at + (kind >> 8)
            at = max(after, least + max(-least % _BLOCK - (_USABLE - 1), 0))


def chunk_data(file: str | os.PathLike, chunk: Chunk) -> bytes:
    """What is in a chunk, without its header; fewer bytes where the file ends before it does."""
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as m:
        return _at(m, chunk.offset, _HEADER.size + chunk.size)[_HEADER.size :]


def check_inflation(file: str | os.PathLike) -> None:
    """Refuse a file that would be inflated to far more than it holds.

    Raises:
        ValueError: naming the chunk.
    """
    for chunk in chunks(file):
        if chunk.decoded > _LARGE and chunk.decoded > _MOST * chunk.size:
            raise ValueError(
                f"the chunk at byte {chunk.offset} would be inflated from {chunk.size} to "
                f"{chunk.decoded} bytes"
            )


def _at(data: mmap.mmap, offset: int, size: int) -> bytes:
    """Bytes from an offset on, without the headers at every multiple of 64 KiB."""
    parts = []
    while size:
        offset += _BLOCK_HEADER if offset % _BLOCK == 0 else 0
        part = data[offset : offset + min(size, _BLOCK - offset % _BLOCK)]
        if not part:
            break
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return b"".join(parts)
