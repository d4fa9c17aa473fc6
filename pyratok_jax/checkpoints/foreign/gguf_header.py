"""The counts in a GGUF file's header, checked before a reader believes them.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little-endian).
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

MAX_FACTS, MAX_TENSORS, MAX_NESTING = 1 << 16, 1 << 20, 8
_STRING, _ARRAY = 8, 9
# Bytes of a value by its type: (u)int8, (u)int16, (u)int32, float32, bool, (u)int64, float64.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def check_header(path: Path) -> None:
    """Walk over the facts of a GGUF file without unpacking them.

    Raises:
        ValueError: a count or length that the file cannot hold, or an unknown type.
    """
    with path.open("rb") as file:
        _Header(file, os.fstat(file.fileno()).st_size).check()


class _Header:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def check(self) -> None:
        _, version = self._file.read(4), self._number(4)
        if version not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3, little-endian")
        tensors, facts = self._number(8), self._number(8)
        if tensors > MAX_TENSORS or facts > MAX_FACTS:
            raise ValueError(f"{tensors} tensors and {facts} facts, more than any model has")
        for _ in range(facts):
            self._skip(self._number(8))  # the key
            self._value(self._number(4), 0)

    def _value(self, kind: int, depth: int) -> None:
        if kind in _SIZES:
            self._skip(_SIZES[kind])
        elif kind == _STRING:
            self._skip(self._number(8))
        elif kind == _ARRAY and depth < MAX_NESTING:
            inner, count = self._number(4), self._number(8)
            if inner in _SIZES:
                self._skip(count * _SIZES[inner])
                return
            if count * 8 > self._left():
                raise ValueError(f"an array of {count} entries in {self._left()} bytes")
            for _ in range(count):
                self._value(inner, depth + 1)
        else:
            raise ValueError(f"a value of type {kind}, nested {depth} deep")

    def _left(self) -> int:
        return self._size - self._file.tell()

    def _number(self, size: int) -> int:
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError("it ends within its header")
        return struct.unpack("<I" if size == 4 else "<Q", data)[0]

    def _skip(self, size: int) -> None:
        if size > self._left():
            raise ValueError(f"{size} bytes announced, {self._left()} left")
        self._file.seek(size, os.SEEK_CUR)
