"""The records of an ArrayRecord file that was cut off or damaged.

Without its end the library reads nothing of such a file. Ours are written uncompressed with one
record per chunk, so their chunks (https://github.com/google/riegeli, records format) can be walked
one after another. Whether a record is whole, its own checksum tells.
"""

import struct
from collections.abc import Iterator

from etils import epath

_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_HEADER = struct.Struct("<QQQQQ")  # Hash, data size, data hash, type and records, decoded size.
_SIMPLE, _UNCOMPRESSED = ord("r"), 0


def walk_array_record(file: str) -> Iterator[bytes]:
    """Records of the chunks from the beginning on; it ends where no chunk can be recognised.

    Files that are compressed, or hold several records in a chunk, give nothing.
    """
    stream = _Chunks(file)
    with stream.file:
        while True:
            header = stream.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            _, size, _, kind, decoded = _HEADER.unpack(header)
            if size > stream.left or kind & 0xFF not in b"smprt\0":
                return
            data = stream.read(size)
            if len(data) < size:
                return
            record = _only_record(data, decoded) if kind == _SIMPLE | 1 << 8 else None
            if record is not None:
                yield record


def _only_record(data: bytes, length: int) -> bytes | None:
    """The record in a simple chunk: compression, size of the sizes, the sizes, the values."""
    if len(data) < 2 or data[0] != _UNCOMPRESSED or length > len(data):
        return None
    return data[len(data) - length :]


class _Chunks:
    """A file without the block headers, which lie at every multiple of 64 KiB."""

    def __init__(self, file: str) -> None:
        self.file = epath.Path(file).open("rb")
        self._size, self._at = epath.Path(file).stat().length, 0

    @property
    def left(self) -> int:
        """Bytes until the end of the file."""
        return self._size - self._at

    def read(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        parts = []
        while size:
            if self._at % _BLOCK == 0:
                self._at += _BLOCK_HEADER
                self.file.seek(self._at)
            part = self.file.read(min(size, _BLOCK - self._at % _BLOCK))
            if not part:
                break
            parts.append(part)
            self._at += len(part)
            size -= len(part)
        return b"".join(parts)
