"""Random access to clips in ArrayRecord and TFRecord shards, prepared by us, TFDS or others."""

import re
import struct
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from etils import epath

from pyratok_jax.data.examples import decode_example
from pyratok_jax.data.index import ClipIndex
from pyratok_jax.data.records import ClipRecord
from pyratok_jax.data.videos import BrokenVideoError
from pyratok_jax.errors import UserError

INDEX_FILE = "clips.npz"
_SHARD = re.compile(r"\.(array_record|arrayrecord|tfrecords?)(-\d+-of-\d+)?$")
_LENGTH = struct.Struct("<Q")
_HEAD, _FOOT = 12, 4  # TFRecord: 8 bytes length and 4 bytes checksum before, 4 bytes after.


def shard_files(folder: str, split: str | None = None) -> list[str]:
    """The shards directly in a folder, sorted; with `split`, only those of that TFDS split."""
    files = []
    for entry in epath.Path(folder).iterdir():
        if not entry.name.startswith(".") and _SHARD.search(entry.name):
            in_split = split is None or re.search(rf"(^|-){re.escape(split)}\.", entry.name)
            if in_split:
                files.append(str(entry))
    return sorted(files)


class ShardRecords(Sequence[ClipRecord]):
    """The clips of many shards, read one by one when they are asked for.

    `index` is the sizes and lengths of all clips, where the folder holds them (`clips.npz`, as
    our preparation writes it), else None. Can be pickled; files are opened in each process.

    Raises:
        UserError: no shard, or shards that cannot be read.
    """

    def __init__(self, files: Sequence[str]) -> None:
        if not files:
            raise UserError("no ArrayRecord or TFRecord shard was found; expected *.array_record-*")
        self.files = list(files)
        self._readers: list[Any] = [_reader(file) for file in self.files]
        self._ends = np.cumsum([len(reader) for reader in self._readers])
        self.index = _load_index(str(epath.Path(files[0]).parent), len(self))

    def __reduce__(self) -> tuple:
        return ShardRecords, (self.files,)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, number: int) -> ClipRecord: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[ClipRecord]: ...
    def __getitem__(self, number: int | slice) -> ClipRecord | Sequence[ClipRecord]:
        """One clip. Raises: BrokenVideoError when its record is damaged."""
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = number + len(self) if number < 0 else number
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._ends, number, side="right"))
        offset = number - (int(self._ends[shard - 1]) if shard else 0)
        where = f"{self.files[shard]}#{offset}"
        try:
            data = self._readers[shard][offset]
        except (RuntimeError, OSError, ValueError, IndexError) as error:
            raise BrokenVideoError(where, f"the record is damaged ({error})") from error
        return decode_example(data, where)


def _load_index(folder: str, clips: int) -> ClipIndex | None:
    path = epath.Path(folder) / INDEX_FILE
    if not path.exists():
        return None
    with path.open("rb") as file, np.load(file, allow_pickle=False) as columns:
        if len(columns["height"]) != clips:
            return None
        numbers = np.arange(clips)
        names = ("height", "width", "seconds", "fps")
        return ClipIndex(numbers, *(columns[name] for name in names), broken=())


def _reader(file: str) -> Any:
    match = _SHARD.search(file)
    try:
        if match and match.group(1).startswith("tfrecord"):
            return _TFRecords(file)
        return _ArrayRecords(file)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"cannot read the shard {file}: {error}; prepare it again") from error


class _ArrayRecords:
    """One ArrayRecord file; empty ones, which the library refuses, have no record."""

    def __init__(self, file: str) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._source: Any = () if not epath.Path(file).stat().length else None
        if self._source is None:
            self._source = ArrayRecordDataSource([file])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: int) -> bytes:
        return self._source[number]


class _TFRecords:
    """One TFRecord file, made seekable by one pass over its record lengths."""

    def __init__(self, file: str) -> None:
        self._file = epath.Path(file)
        self._spans: list[tuple[int, int]] = []
        size, position = self._file.stat().length, 0
        with self._file.open("rb") as stream:
            while position < size:
                stream.seek(position)
                head = stream.read(_HEAD)
                if len(head) < _HEAD:
                    raise ValueError("it is cut off")
                length = _LENGTH.unpack(head[:8])[0]
                if position + _HEAD + length + _FOOT > size:
                    raise ValueError("it is cut off")
                self._spans.append((position + _HEAD, length))
                position += _HEAD + length + _FOOT

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, number: int) -> bytes:
        offset, length = self._spans[number]
        with self._file.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
