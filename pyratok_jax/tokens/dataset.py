"""Reading token datasets: by number, in order, or as far as a damaged file can be read.

Neither model code nor TensorFlow is imported here.

For training generators, the tokens of a block are one sequence of ids (`flatten`, `unflatten`). The
order is that of the alignment's autoregressive pass: SOI, level 1, Q-SEP, level 2, Q-SEP, ..., the
last level; inside a level raster order over time, height and width. Ids of tokens are their own;
Q-SEP = K, as in the alignment's softmax head, and SOI, which nothing predicts, K + 1.
"""

from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np
from etils import epath

from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.chunks import chunk_data, chunks
from pyratok_jax.io.documents import read_json
from pyratok_jax.io.mirror import cached_file
from pyratok_jax.io.remote import open_path
from pyratok_jax.io.shards import (
    ShardedRecords,
    check_shard,
    check_whole,
    is_shard,
    is_tfrecord,
    missing_shards,
    open_records,
    shard_files,
)
from pyratok_jax.io.tfrecords import TFRecordFile
from pyratok_jax.tokens.schema import (
    DamagedRecordError,
    SchemaError,
    TokenRecord,
    decode_record,
)


def soi_id(vocabulary: int) -> int:
    """The id of the mark that begins the visual tokens."""
    return vocabulary + 1


def separator_id(vocabulary: int) -> int:
    """The id of the mark between two levels."""
    return vocabulary


def sequence_length(grids: Sequence[Sequence[int]]) -> int:
    """Length of the flat sequence of levels with these grids (t, h, w): one mark before each."""
    return sum(int(np.prod(grid)) + 1 for grid in grids)


def flatten(levels: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
    """One sequence (n,) of a block's levels; int32 where the ids fit, else int64."""
    dtype = np.int32 if vocabulary + 2 <= 2**31 else np.int64
    parts: list[np.ndarray] = []
    for number, level in enumerate(levels):
        mark = separator_id(vocabulary) if number else soi_id(vocabulary)
        parts += [np.array([mark], dtype), np.asarray(level).ravel().astype(dtype)]
    return np.concatenate(parts)


def unflatten(
    sequence: np.ndarray, grids: Sequence[Sequence[int]], vocabulary: int
) -> tuple[np.ndarray, ...]:
    """The levels of a sequence from `flatten`, or of a generated one: uint16 or uint32 (t, h, w).

    Args:
        sequence: ids (n,), beginning with SOI.
        grids: (t, h, w) of every level.
        vocabulary: number of valid ids.

    Raises:
        UserError: another length, a mark where a token belongs, or the reverse.
    """
    sequence = np.asarray(sequence)
    expected = sequence_length(grids)
    if sequence.shape != (expected,):
        raise UserError(
            f"a sequence of shape {sequence.shape} does not hold grids {list(map(tuple, grids))}; "
            f"expected ({expected},): SOI, the levels, and Q-SEP between them"
        )
    dtype = np.uint16 if vocabulary <= 2**16 else np.uint32
    levels, at = [], 0
    for number, grid in enumerate(grids):
        mark = separator_id(vocabulary) if number else soi_id(vocabulary)
        if int(sequence[at]) != mark:
            raise UserError(
                f"position {at} of the sequence holds {int(sequence[at])}, expected the mark "
                f"{mark} before level {number + 1}"
            )
        size = int(np.prod(grid))
        ids = sequence[at + 1 : at + 1 + size]
        wrong = np.flatnonzero((ids < 0) | (ids >= vocabulary))
        if len(wrong):
            raise UserError(
                f"position {at + 1 + wrong[0]} of the sequence holds {int(ids[wrong[0]])}, "
                f"expected a token of level {number + 1} below {vocabulary}"
            )
        levels.append(ids.astype(dtype).reshape(tuple(grid)))
        at += 1 + size
    return tuple(levels)


CARD = "dataset_card.json"
# Of an ArrayRecord file, see `io.chunks`.
_SIMPLE, _UNCOMPRESSED = ord("r"), 0


def token_shards(path: str, *, whole: bool = False) -> list[str]:
    """The shards of a dataset's folder, or the one shard that is named.

    Args:
        path: folder or shard.
        whole: refuse a folder that lacks some of its shards.

    Raises:
        UserError: there is none.
    """
    location = open_path(path)
    if location.is_dir():
        files = shard_files(path)
        if not files:
            raise UserError(f"{path} holds no shard of tokens; name the --output of export_tokens")
        if whole:
            check_whole(path, files, "name a shard to read it alone")
        return files
    if location.exists() and is_shard(location.name):
        check_shard(str(path))
        return [str(path)]
    raise UserError(f"{path} is neither a folder nor a shard (*.array_record-*, *.tfrecord-*)")


class TokenDataset(ShardedRecords[TokenRecord]):
    """The records of a dataset, read when they are asked for; `dataset[i]` is one.

    It is a data source for grain: `grain.MapDataset.source(TokenDataset(folder))`.
    It can be pickled; every process opens the files for itself. A record that is damaged raises a
    DamagedRecordError.

    Args:
        path: folder or shard.

    Raises:
        UserError: no shard, one that is cut off, or a folder that lacks some (see `read_all` for
            what can be read of them).
    """

    def __init__(self, path: str) -> None:
        self.path = str(path)
        super().__init__(token_shards(self.path, whole=True))

    def __reduce__(self) -> tuple[type["TokenDataset"], tuple[str]]:
        return TokenDataset, (self.path,)

    def _decode(self, data: bytes, where: str) -> TokenRecord:
        return decode_record(data, where)

    def _unreadable(self, where: str, reason: str) -> DamagedRecordError:
        return DamagedRecordError(where, f"it cannot be read ({reason})")

    def sequences(self, as_jax: bool = False) -> "SequenceSource":
        """The same records as flat sequences, see `sequence.flatten`."""
        return SequenceSource(self, as_jax)

    @property
    def card(self) -> dict[str, Json]:
        """The dataset card; empty for a lone shard or an unfinished export."""
        path = epath.Path(self.path) / CARD
        return read_json(path, dict[str, Json]) if path.exists() else {}


class SequenceSource(Sequence[dict[str, Json]]):
    """Flat sequences of a dataset, for generators; a data source for grain.

    An item holds `sequence` (n,), `grids` (levels, 3), `caption` and `id`, and `read` (n,) where
    bits were flipped (`TokenRecord.read`); arrays are NumPy's, or JAX's if asked for.
    """

    def __init__(self, dataset: TokenDataset, as_jax: bool = False) -> None:
        self._dataset, self._as_jax = dataset, as_jax

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, number: SupportsIndex) -> dict[str, Json]:  # type: ignore[override]
        """One record's sequence. Raises: DamagedRecordError, IndexError."""
        record = self._dataset[number.__index__()]
        arrays: dict[str, Any] = {"sequence": flatten(record.tokens, record.vocabulary)}
        if record.read:
            arrays["read"] = flatten(record.read, record.vocabulary)
        arrays["grids"] = np.array(record.grids, np.int32)
        if self._as_jax:
            import jax.numpy as jnp

            arrays = {key: jnp.asarray(value) for key, value in arrays.items()}
        return {**arrays, "caption": record.caption, "id": record.id}


def iterate(path: str) -> Iterator[TokenRecord]:
    """All records in order. Raises: UserError (DamagedRecordError) at the first bad one."""
    dataset = TokenDataset(path)
    return (dataset[number] for number in range(len(dataset)))


def read_all(path: str, any_schema: bool = False) -> Iterator[TokenRecord | DamagedRecordError]:
    """All records in order; in the place of every one that is damaged, the error that says so.

    So it is for records of a newer version among others of this one. Of a file that is cut off, the
    records before the cut are read; a shard that is missing is named like a damaged record.

    Args:
        path: folder or shard.
        any_schema: see `schema.decode_record`.

    Raises:
        UserError: no shard; SchemaError: records of another version.
    """
    known, newer = 0, list[SchemaError]()
    files = token_shards(str(path))
    if open_path(path).is_dir():
        for name in missing_shards(files):
            yield DamagedRecordError(f"{path}/{name}", _MISSING)
    for file in files:
        for item in _read_file(file, any_schema):
            if isinstance(item, SchemaError):
                newer.append(item)
                if not known and len(newer) >= _HOPELESS:
                    raise item
                yield DamagedRecordError(item.where, f"it {item.reason}")
            else:
                known += isinstance(item, TokenRecord)
                yield item
    if newer and not known:
        raise newer[0]


_MISSING = "it is missing: the export is not finished (run it again), or not all was copied"
_Item = TokenRecord | DamagedRecordError | SchemaError
_HOPELESS = 25  # Records of a newer version, and none of this one: the dataset is newer.


def _read_file(file: str, any_schema: bool) -> Iterator[_Item]:
    try:
        reader = TFRecordFile(file, tolerant=True) if is_tfrecord(file) else open_records(file)
    except (UserError, OSError, ValueError):
        yield from _salvaged(file, any_schema)
        return
    for number in range(len(reader)):
        where = f"{file}#{number}"
        try:
            yield decode_record(reader[number], where, any_schema)
        except (DamagedRecordError, SchemaError) as error:
            yield error
        except (RuntimeError, OSError, ValueError, IndexError) as error:
            yield DamagedRecordError(where, f"it cannot be read ({error})")
    cut = getattr(reader, "damaged", None)
    if cut is not None:
        yield DamagedRecordError(file, f"it is cut off at byte {cut}")


def _salvaged(file: str, any_schema: bool) -> Iterator[_Item]:
    found = 0
    for number, data in enumerate(walk_array_record(file)):
        try:
            yield decode_record(data, f"{file}#{number}", any_schema)
            found += 1
        except (DamagedRecordError, SchemaError) as error:
            yield error
    yield DamagedRecordError(file, f"it is cut off or damaged; {found} records could be read")


def walk_array_record(file: str) -> Iterator[bytes]:
    """The records of an ArrayRecord file that was cut off or damaged, up to the damage.

    Without its end the library reads nothing of such a file. Ours are written uncompressed with one
    record per chunk, so their chunks can be walked one after another; whether a record is whole,
    its own checksum tells. Files that are compressed, or hold several records in a chunk, give
    nothing.
    """
    local = cached_file(file)
    for chunk in chunks(local):
        if chunk.kind not in b"smprt\0":
            return
        data = chunk_data(local, chunk)
        if len(data) < chunk.size:
            return
        alone = chunk.kind == _SIMPLE and chunk.records == 1
        record = _only_record(data, chunk.decoded) if alone else None
        if record is not None:
            yield record


def _only_record(data: bytes, length: int) -> bytes | None:
    """The record in a simple chunk: compression, size of the sizes, the sizes, the values."""
    if len(data) < 2 or data[0] != _UNCOMPRESSED or length > len(data):
        return None
    return data[len(data) - length :]
