"""Files of records: reading ArrayRecord and TFRecord by position, without TensorFlow.

Nothing of video or models is imported here, so that readers of tokens stay light.
"""

import re
import struct
from collections.abc import Sequence
from typing import Protocol

from etils import epath

from pyratok_jax.errors import UserError

_SHARD = re.compile(r"\.(array_record|arrayrecord|tfrecords?)(-\d+-of-\d+)?$")
_LENGTH = struct.Struct("<Q")
_HEAD, _FOOT = 12, 4  # TFRecord: 8 bytes length and 4 bytes checksum before, 4 bytes after.


class RecordFile(Protocol):
    """The records of one file, as bytes."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> bytes: ...


def is_shard(name: str) -> bool:
    """Whether a file's name is that of an ArrayRecord or TFRecord file."""
    return _SHARD.search(name) is not None


def is_tfrecord(name: str) -> bool:
    """Whether a file's name is that of a TFRecord file."""
    match = _SHARD.search(name)
    return match is not None and match.group(1).startswith("tfrecord")


def shard_files(folder: str, split: str | None = None) -> list[str]:
    """The shards directly in a folder, sorted; with `split`, only those of that TFDS split."""
    files = []
    for entry in epath.Path(folder).iterdir():
        if not entry.name.startswith(".") and is_shard(entry.name):
            in_split = split is None or re.search(rf"(^|-){re.escape(split)}\.", entry.name)
            if in_split:
                files.append(str(entry))
    return sorted(files)


def open_records(file: str) -> RecordFile:
    """One shard, by the format that its name tells.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return TFRecordFile(file) if is_tfrecord(file) else ArrayRecordFile(file)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"cannot read the shard {file}: {error}; prepare it again") from error


class ArrayRecordFile:
    """One ArrayRecord file; empty ones, which the library refuses, have no record.

    Raises:
        RuntimeError: it is cut off.
    """

    def __init__(self, file: str) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from array_record.python.array_record_module import ArrayRecordReader

        size = epath.Path(file).stat().length
        self._source: Sequence[bytes] = () if not size else ArrayRecordDataSource([file])
        if size and not len(self._source):
            # The library takes a file without its end for an empty one, until it is read.
            ArrayRecordReader(file).read_all()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> bytes:
        return self._source[number]


class TFRecordFile:
    """One TFRecord file, made seekable by one pass over its record lengths.

    `damaged` is where it was cut off, in bytes, or None; only with `tolerant` it may be.

    Raises:
        ValueError: it is cut off, and `tolerant` was not asked for.
    """

    def __init__(self, file: str, tolerant: bool = False) -> None:
        self._file = epath.Path(file)
        self._spans: list[tuple[int, int]] = []
        self.damaged: int | None = None
        size, position = self._file.stat().length, 0
        with self._file.open("rb") as stream:
            while position < size:
                stream.seek(position)
                head = stream.read(_HEAD)
                length = _LENGTH.unpack(head[:8])[0] if len(head) == _HEAD else size
                if position + _HEAD + length + _FOOT > size:
                    self.damaged = position
                    break
                self._spans.append((position + _HEAD, length))
                position += _HEAD + length + _FOOT
        if self.damaged is not None and not tolerant:
            raise ValueError("it is cut off")

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, number: int) -> bytes:
        offset, length = self._spans[number]
        with self._file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
