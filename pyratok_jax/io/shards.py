"""Shards of a dataset: ArrayRecord and TFRecord files, read by position and written in order.

Readers load neither TensorFlow nor anything of video or models.
"""

import abc
import itertools
import os
import re
import resource
import stat
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import numpy as np
from etils import epath

from pyratok_jax.errors import UserError, short
from pyratok_jax.io.chunks import check_inflation
from pyratok_jax.io.mirror import cached_file
from pyratok_jax.io.remote import is_remote
from pyratok_jax.io.tensorflow import load_tensorflow
from pyratok_jax.io.tfrecords import TFRecordFile

T = TypeVar("T")
SPLIT = "train"
_CHECKED_AT_ONCE = 8 << 20
FORMATS = ("array_record", "tfrecord")
_SHARD = re.compile(r"\.(array_record|arrayrecord|tfrecords?)(-\d+-of-\d+)?$")

_MOST_NAMED = 20
_NUMBERED = re.compile(r"(.+)-(\d{1,9})-of-(\d{1,9})")


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
                check_shard(str(entry))
                files.append(str(entry))
    return sorted(files)


def missing_shards(files: Iterable[str]) -> list[str]:
    """Names of the shards that a set lacks whose others are named SET-NNNNN-of-MMMMM; sorted.

    Of each set the first `_MOST_NAMED`, then one line that counts the rest: a name may state any
    number.
    """
    sets = dict[tuple[str, int], set[int]]()
    for file in files:
        numbered = shard_number(epath.Path(file).name)
        if numbered is not None:
            sets.setdefault((numbered[0], numbered[2]), set()).add(numbered[1])
    names = list[str]()
    for (name, count), found in sorted(sets.items()):
        lacking = (number for number in range(count) if number not in found)
        some = list(itertools.islice(lacking, _MOST_NAMED))
        names += [f"{name}-{number:05d}-of-{count:05d}" for number in some]
        more = count - sum(number < count for number in found) - len(some)
        names += [f"{more} more of {name}"] if more else []
    return names


def check_whole(folder: str, files: Iterable[str], advice: str) -> None:
    """Refuse a folder that lacks some of its shards.

    Args:
        folder: for the message.
        files: the shards in it.
        advice: what else can be done, for the message.

    Raises:
        UserError: naming them.
    """
    missing = missing_shards(files)
    if missing:
        raise UserError(
            f"{folder} lacks {short(', '.join(missing), 200)}: the command that writes it has not "
            f"finished (run it again), or not all was copied; {advice}"
        )


def check_shard(file: str) -> None:
    """Refuse pipes, devices and folders with the name of a shard.

    Raises:
        UserError: it is one.
    """
    try:
        if not is_remote(file) and not stat.S_ISREG(os.stat(file).st_mode):
            raise UserError(f"{file} is no regular file; remove it, or name another folder")
    except OSError as error:
        raise UserError(f"cannot read the shard {file}: {error.strerror or error}") from error


def open_records(file: str) -> RecordFile:
    """One shard, by the format that its name tells.

    Raises:
        UserError: it cannot be read.
    """
    check_shard(file)
    try:
        return TFRecordFile(file) if is_tfrecord(file) else ArrayRecordFile(file)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"cannot read the shard {file}: {error}; prepare it again") from error


class _Whole(NamedTuple):
    """A whole file as the library wants it described, so that it does not count its records."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class ArrayRecordFile:
    """One ArrayRecord file; empty ones, which the library refuses, have no record.

    A dataset may have more files than a process may open: of all objects those that were read from
    last keep theirs open, as many as a quarter of the limit (`ulimit -n`).

    Raises:
        RuntimeError: it is cut off.
        ValueError: it would be inflated to far more than it holds.
    """

    def __init__(self, file: str) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
        from array_record.python.array_record_module import ArrayRecordReader

        # The library opens files of a disk alone.
        self._file = os.fspath(cached_file(file))
        size = os.stat(self._file).st_size
        # Large files are checked when they are first read: it takes 3 us a chunk.
        self._checked = size <= _CHECKED_AT_ONCE
        if self._checked:
            check_inflation(self._file)
        self._count = len(ArrayRecordDataSource([self._file])) if size else 0
        if size and not self._count:
            # The library takes a file without its end for an empty one, until it is read.
            check_inflation(self._file)
            ArrayRecordReader(self._file).read_all()
        self._source: Sequence[bytes] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> bytes:
        # Held here, so that it stays open until it is read although others may close it.
        source = self._opened()
        return source[number]

    def _opened(self) -> Sequence[bytes]:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        with _OPEN_LOCK:
            me = weakref.ref(self, _forgotten)
            if not self._checked:
                check_inflation(self._file)
                self._checked = True
            if self._source is None:
                whole = _Whole(self._file, 0, self._count, self._count)
                self._source = ArrayRecordDataSource([whole])
                for oldest in list(_OPEN)[: max(len(_OPEN) + 1 - _most_open(), 0)]:
                    del _OPEN[oldest]
                    if (other := oldest()) is not None:
                        other._source = None
            else:
                _OPEN.pop(me, None)
            _OPEN[me] = None
            return self._source


# The objects whose files are open; those that were read from last come last.
_OPEN: dict["weakref.ref[ArrayRecordFile]", None] = {}
# Objects may go away while this thread holds it.
_OPEN_LOCK = threading.RLock()


def _forgotten(gone: "weakref.ref[ArrayRecordFile]") -> None:
    with _OPEN_LOCK:
        _OPEN.pop(gone, None)


def _most_open() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 10 if soft == resource.RLIM_INFINITY else max(soft // 4, 8)


class ShardedRecords(Sequence[T]):
    """The records of several shards in order, decoded when they are asked for.

    A data source for grain: it has a length, random access, and pickles as its list of files, which
    every process opens for itself. Subclasses say how a record is decoded.

    Raises:
        UserError: a shard cannot be read.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = list(files)
        self._readers: list[RecordFile] = [open_records(file) for file in self.files]
        self._ends = np.cumsum([len(reader) for reader in self._readers])

    @abc.abstractmethod
    def _decode(self, data: bytes, where: str) -> T:
        """The record in the bytes at `where`, SHARD#NUMBER."""

    @abc.abstractmethod
    def _unreadable(self, where: str, reason: str) -> Exception:
        """The error that says that the bytes at `where` cannot be read."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[T]: ...
    def __getitem__(self, number: int | slice) -> T | Sequence[T]:
        """One record, or a list of several."""
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        data, where = self.read_bytes(number)
        return self._decode(data, where)

    def read_bytes(self, number: int) -> tuple[bytes, str]:
        """One record as it is stored, and where that is, SHARD#NUMBER. Raises: IndexError."""
        index = number.__index__()
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        offset = index - (int(self._ends[shard - 1]) if shard else 0)
        where = f"{self.files[shard]}#{offset}"
        try:
            return self._readers[shard][offset], where
        except (RuntimeError, OSError, ValueError, IndexError) as error:
            raise self._unreadable(where, str(error)) from error


def shard_name(dataset: str, kind: str, number: int, shards: int) -> str:
    """A shard's file name, as TFDS expects it."""
    return f"{dataset}-{SPLIT}.{kind}-{number:05d}-of-{shards:05d}"


def shard_number(name: str) -> tuple[str, int, int] | None:
    """(name of the set, number, how many) of a shard's file name; None where it says none."""
    match = _NUMBERED.fullmatch(name)
    return None if match is None else (match[1], int(match[2]), int(match[3]))


class ShardWriter:
    """The writer of one shard, as a context manager with `write(bytes)`.

    Args:
        path: a local file.
        kind: one of `FORMATS`.
        options: of ArrayRecord; one record per group, so that each can be read alone.
    """

    def __init__(self, path: Path, kind: str, options: str = "group_size:1") -> None:
        if kind == "array_record":
            from array_record.python.array_record_module import ArrayRecordWriter

            self._writer: Any = ArrayRecordWriter(str(path), options)
        else:
            load_tensorflow()
            import tensorflow as tf

            self._writer = tf.io.TFRecordWriter(str(path))

    def __enter__(self) -> "ShardWriter":
        return self

    def write(self, data: bytes) -> None:
        """Append one record."""
        self._writer.write(data)

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def write_tfds_metadata(
    output: epath.Path,
    *,
    dataset: str,
    kind: str,
    features: Mapping[str, Any],
    lengths: Sequence[int],
    size: int,
    description: str,
) -> None:
    """Write dataset_info.json and features.json, by which TFDS opens the folder.

    Args:
        output: the folder of the shards.
        dataset: the name in the shards' names.
        kind: one of `FORMATS`.
        features: TFDS's feature connectors by key.
        lengths: number of records of each shard.
        size: bytes of all records.
        description: for people.
    """
    load_tensorflow()
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=output, dataset_name=dataset, split=SPLIT, filetype_suffix=kind
    )
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=list(lengths), num_bytes=size, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(output), features=dict(features), split_infos=[split], version="1.0.0",
        filename_template=template, check_data=False, description=description,
    )  # fmt: skip
