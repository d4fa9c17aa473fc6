"""What a container's header says that PyAV does not tell."""

import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

_IDENTITY = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16))
# Where it lies in boxes of version 0 and 1.
_MATRIX_PLACES = {b"mvhd": (36, 48), b"tkhd": (40, 52)}
_MOST_BOXES = 4096
_PROJECTION = b"\x76\x70"  # Of Matroska: the element that holds a rotation.
_CLUSTER = b"\x1f\x43\xb6\x75"  # Ends Matroska's header.
_SEARCHED = 1 << 16


def may_be_turned(source: str | os.PathLike | bytes, container: Any) -> bool:
    """Whether frames may have to be turned; True where that is only known by decoding one.

    Cheap for local MP4, MOV and Matroska files without a rotation, which are most.
    """
    name = container.format.name
    mp4, matroska = name.startswith("mov,"), name.startswith("matroska")
    remote = not isinstance(source, bytes) and "://" in os.fspath(source)
    if remote or not (mp4 or matroska):
        return True
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        if mp4:
            matrices = list(_matrices(file, 0, file.seek(0, os.SEEK_END), b""))
            return not matrices or any(matrix != _IDENTITY for matrix in matrices)
        header = file.read(_SEARCHED)
    end = header.find(_CLUSTER)
    return end < 0 or _PROJECTION in header[:end]


def _matrices(file: BinaryIO, begin: int, end: int, parent: bytes) -> Iterator[bytes]:
    """The first five numbers of the display matrices of a film and its tracks (ISO 14496-12)."""
    for _ in range(_MOST_BOXES):
        file.seek(begin)
        head = file.read(16)
        size, kind, start = int.from_bytes(head[:4], "big"), head[4:8], begin + 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), begin + 16
        size = size or end - begin
        if size < 8 or begin + 8 > end:
            return
        if (parent, kind) in ((b"", b"moov"), (b"moov", b"trak")):
            yield from _matrices(file, start, min(begin + size, end), kind)
        elif kind in _MATRIX_PLACES:
            file.seek(start)
            body = file.read(96)
            place = _MATRIX_PLACES[kind][body[:1] == b"\1"]
            yield body[place : place + 20]
        begin += size
        if kind == b"moov":
            return
