"""The chunks of an ArrayRecord file (https://github.com/google/riegeli, "records format").

Only headers are looked at: what a chunk says it will be inflated to is known before it is.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

BLOCK, BLOCK_HEADER = 1 << 16, 24
HEADER = struct.Struct("<QQQQQ")  # Hash, data size, data hash, type and records, decoded size.
_USABLE = BLOCK - BLOCK_HEADER
# A chunk of more bytes than this may hold at most so many times what it takes in the file.
_LARGE, _MOST = 256 << 20, 100


class Chunk(NamedTuple):
    """Offset in the file, bytes of its data there, number of records, bytes once inflated."""

    offset: int
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
            header = _at(m, at, HEADER.size)
            if len(header) < HEADER.size:
                return
            _, size, _, kind, decoded = HEADER.unpack(header)
            if size > end:
                return
            yield Chunk(at, size, kind >> 8, decoded)
            length = HEADER.size + size
            after = at + length + (length + (at + _USABLE - 1) % BLOCK) // _USABLE * BLOCK_HEADER
            # Every record has a position of its own, also where they take fewer bytes.
            least = at + (kind >> 8)
            at = max(after, least + max(-least % BLOCK - (_USABLE - 1), 0))


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
    found = b""
    while size:
        offset += BLOCK_HEADER if offset % BLOCK == 0 else 0
        part = data[offset : offset + min(size, BLOCK - offset % BLOCK)]
        if not part:
            break
        found, offset, size = found + part, offset + len(part), size - len(part)
    return found
