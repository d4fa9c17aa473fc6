"""Random access to clips in ArrayRecord and TFRecord shards, prepared by us, TFDS or others."""

from collections.abc import Sequence
from typing import overload

import numpy as np
from etils import epath

from pyratok_jax.data.sources.examples import decode_example
from pyratok_jax.data.sources.index import ClipIndex
from pyratok_jax.data.sources.record_files import RecordFile, open_records
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import BrokenVideoError
from pyratok_jax.errors import UserError

INDEX_FILE = "clips.npz"


class ShardRecords(Sequence[ClipRecord]):
    """The clips of many shards, read one by one when they are asked for.

    `clip_index` is the sizes and lengths of all clips, where the folder holds them (`clips.npz`, as
    our preparation writes it), else None. Can be pickled; files are opened in each process.

    Raises:
        UserError: no shard, or shards that cannot be read.
    """

    def __init__(self, files: Sequence[str]) -> None:
        if not files:
            raise UserError("no ArrayRecord or TFRecord shard was found; expected *.array_record-*")
        self.files = list(files)
        self._readers: list[RecordFile] = [open_records(file) for file in self.files]
        self._ends = np.cumsum([len(reader) for reader in self._readers])
        self.clip_index = _load_index(str(epath.Path(files[0]).parent), len(self))

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
