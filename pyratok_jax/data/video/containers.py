"""What a container's header says that PyAV does not tell: turns, and where the file should end."""

import io
import itertools
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
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
# Boxes that hold or describe pictures, and those that an MP4 or MOV file may begin with.
_MEDIA_BOXES = (b"mdat", b"moof")
_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"free", b"wide", b"skip", *_MEDIA_BOXES)


def cut_off(file: BinaryIO) -> bool:
    """Whether an MP4, MOV or Matroska file ends before its boxes or elements do.

    FFmpeg reads what is there and stops without an error where such a file has no list of frames.
    Files of other containers, and those whose length was not known when they were begun, are not.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(256)
    if head[4:8] in _FIRST_BOXES:
        boxes = itertools.islice(_boxes(file, 0, end), _MOST_BOXES)
        return any(kind in _MEDIA_BOXES and stop > end for kind, _, stop in boxes)
    if not head.startswith(_EBML):
        return False
    size, place = _ebml_size(head, 4)
    if size is None or head[place + size : place + size + 4] != _SEGMENT:
        return False
    size, place = _ebml_size(head, place + size + 4)
    return size is not None and place + size > end


def _ebml_size(data: bytes, place: int) -> tuple[int | None, int]:
    """A size of EBML (RFC 8794) and the place after it; None where it is not known."""
    first = data[place] if place < len(data) else 0
    length = 9 - first.bit_length()
    value = int.from_bytes(data[place : place + length], "big") - (1 << 7 * length)
    known = first and value != (1 << 7 * length) - 1
    return (value if known else None), place + length


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its content begins, where it ends) of boxes side by side (ISO 14496-12)."""
    while begin + 8 <= end:
        file.seek(begin)
        head = file.read(16)
        size, start = int.from_bytes(head[:4], "big"), begin + 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), begin + 16
        size = size or end - begin
        if size < 8:
            return
        yield head[4:8], start, begin + size
        begin += size


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
    """The first five numbers of the display matrices of a video and its tracks."""
    for kind, start, stop in itertools.islice(_boxes(file, begin, end), _MOST_BOXES):
        if (parent, kind) in ((b"", b"moov"), (b"moov", b"trak")):
            yield from _matrices(file, start, min(stop, end), kind)
        elif kind in _MATRIX_PLACES:
            file.seek(start)
            body = file.read(96)
            place = _MATRIX_PLACES[kind][body[:1] == b"\1"]
            yield body[place : place + 20]
        if kind == b"moov":
            return
