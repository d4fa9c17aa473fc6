"""Random access to clips in ArrayRecord and TFRecord shards, prepared by us, TFDS or others."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from pyratok_jax.data.sources.examples import decode_example
from pyratok_jax.data.sources.index import ClipIndex
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import BrokenVideoError
from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import read_npz, refusing
from pyratok_jax.io.shards import ShardedRecords

INDEX_FILE = "clips.npz"


class ShardRecords(ShardedRecords[ClipRecord]):
    """The clips of many shards, read one by one when they are asked for.

    `clip_index` is the sizes and lengths of all clips, where the folder holds them (`clips.npz`, as
    our preparation writes it), else None. A damaged record raises a BrokenVideoError.

    Raises:
        UserError: no shard, shards that cannot be read, or not one clip in them.
    """

    def __init__(self, files: Sequence[str]) -> None:
        if not files:
            raise UserError("no ArrayRecord or TFRecord shard was found; expected *.array_record-*")
        super().__init__(files)
        if not len(self):
            raise UserError(
                f"{files[0]} and the other shards beside it hold no clip; prepare them from a "
                "source of which some clips are kept"
            )
        self.clip_index = _load_index(str(epath.Path(files[0]).parent), len(self))

    def __reduce__(self) -> tuple[type["ShardRecords"], tuple[list[str]]]:
        return ShardRecords, (self.files,)

    def _decode(self, data: bytes, where: str) -> ClipRecord:
        return decode_example(data, where)

    def _unreadable(self, where: str, reason: str) -> BrokenVideoError:
        return BrokenVideoError(where, f"the record is damaged ({reason})")


def _load_index(folder: str, clips: int) -> ClipIndex | None:
    path = epath.Path(folder) / INDEX_FILE
    if not path.exists():
        return None
    advice = "remove it: sizes and lengths are then read from the clips"
    stored = read_npz(path, advice=advice)
    columns = {}
    for name in ("height", "width", "seconds", "fps"):
        with refusing(str(path), advice):
            columns[name] = np.asarray(stored[name], np.float64)
        values = columns[name]
        if values.ndim != 1 or not (values > 0).all():
            raise UserError(f"{path}: {name} is no list of numbers above 0; {advice}")
        if name != "seconds" and not np.isfinite(values).all():
            raise UserError(f"{path}: {name} holds values that are not finite; {advice}")
    if any(len(values) != clips for values in columns.values()):
        return None
    return ClipIndex(np.arange(clips), **columns, broken=())
