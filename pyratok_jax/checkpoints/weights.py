"""Reading converted weights: a folder's record, its arrays, and their hash.

Such a folder holds `config.json` (kind, model configuration, dtype, source, hash), `weights/`
(Orbax; arrays named by their path in the NNX model joined with dots) or, where it was bundled for
others, `model.safetensors`, and files copied along. It is written by
`conversion.write_checkpoint`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import ml_dtypes
import numpy as np
from pydantic import Field

from pyratok_jax.checkpoints.verification import (
    enabled,
    verify_folder,
    verify_record,
    weights_hash,
)
from pyratok_jax.errors import UserError, short
from pyratok_jax.io import Json
from pyratok_jax.io.documents import checked, read_json

if TYPE_CHECKING:
    # At run time only where arrays are read: commands that read a record alone start sooner.
    import jax
    import orbax.checkpoint as ocp
    from jax.sharding import Sharding
    from jax.typing import DTypeLike

    # Of all arrays; or of each, from its name and shape; None: the default device.
    Placement: TypeAlias = Sharding | Callable[[str, tuple[int, ...]], Sharding] | None

FORMAT = "pyratok-jax-weights-1"
SAFETENSORS = "model.safetensors"
_CONVERTER = "weights_conversion"
_ADVICE = "convert the weights again, or put the original folder back"
_PART_BYTES = 1 << 30  # of arrays that are in memory at once while they are hashed
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def as_dtype(dtype: DTypeLike) -> np.dtype:
    """A NumPy dtype, from one or from its name in `DTYPES`.

    Raises:
        UserError: another name.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return np.dtype(dtype)


@dataclasses.dataclass(frozen=True)
class FolderRecord:
    """What `config.json` of a converted folder holds; older ones lack the last two."""

    format: str
    kind: str
    dtype: Literal["float32", "bfloat16", "float16"]
    sha256: str
    shapes: dict[str, list[Annotated[int, Field(ge=0)]]]
    config: dict[str, Json]
    source: list[str] = dataclasses.field(default_factory=list)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    config_sha256: str = ""


def read_config(folder: str | Path, *kinds: str) -> dict[str, Json]:
    """The record in a converted folder's `config.json`, with the keys of `FolderRecord`.

    Raises:
        UserError: no such folder, not one of ours, none of these kinds of model, or damaged.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"{folder}: no config.json; expected a folder written by {_CONVERTER}")
    record = read_json(path, advice=_ADVICE)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path}: not a converted checkpoint; convert it with {_CONVERTER}")
    if record.get("kind") not in kinds:
        found = short(str(record.get("kind")), 60)
        raise UserError(f"{path}: holds a {found}, expected a {' or '.join(kinds)}")
    checked(record, FolderRecord, os.fspath(path), _ADVICE)
    return record


def load_checkpoint(
    folder: str | Path,
    shapes: Mapping[str, Sequence[int]],
    *,
    dtype: DTypeLike | None = None,
    sharding: Placement = None,
) -> dict[str, jax.Array]:
    """Read a converted folder's arrays as `jax.Array`s, each device reading only its own part.

    The stored values are checked against the folder's hash first (`verification`).

    Args:
        folder: written by `conversion.write_checkpoint`.
        shapes: name -> shape that the model has now; checked against the folder.
        dtype: dtype to load as, or None for the one stored.
        sharding: see `Placement`.

    Raises:
        UserError: names or shapes differ from the folder's, or its files are damaged.
    """
    import jax

    path = Path(folder) / "config.json"
    record = checked(read_json(path, advice=_ADVICE), FolderRecord, os.fspath(path), _ADVICE)
    verify_record(f"{path}: config", record.config, record.config_sha256, _ADVICE)
    stored = {name: tuple(shape) for name, shape in record.shapes.items()}
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    if stored != wanted:
        names = sorted(k for k in stored.keys() | wanted.keys() if stored.get(k) != wanted.get(k))
        raise UserError(
            f"{folder}: {len(names)} arrays differ from the model's, first {names[0]}: "
            f"{stored.get(names[0])} stored, {wanted.get(names[0])} needed; convert it again"
        )
    value_type = as_dtype(dtype or record.dtype)
    tree = {
        name: jax.ShapeDtypeStruct(shape, value_type, sharding=as_sharding(sharding, name, shape))
        for name, shape in wanted.items()
    }
    weights = (Path(folder) / "weights").absolute()
    file = Path(folder) / SAFETENSORS
    if file.is_file() and not weights.exists():
        return _from_safetensors(file, record, tree)
    with _restoring(weights) as checkpointer:
        _check_files(weights, checkpointer, stored)
        verify_folder(weights, record.sha256, lambda: _stored(checkpointer, weights, record))
        return _restore(checkpointer, weights, tree)


def _from_safetensors(
    file: Path, record: FolderRecord, tree: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """The arrays of a folder that was bundled: one file in place of Orbax's.

    Raises:
        UserError: other names, shapes or values than config.json says.
    """
    import jax
    import safetensors.flax

    with damage_refused(lambda error: f"{file} is damaged ({error}); {_ADVICE}"):
        arrays = safetensors.flax.load_file(file)
    if {name: x.shape for name, x in arrays.items()} != {n: s.shape for n, s in tree.items()}:
        raise UserError(f"{file}: its arrays are not those that config.json names; {_ADVICE}")
    if enabled() and weights_hash({k: np.asarray(x) for k, x in arrays.items()}) != record.sha256:
        raise UserError(f"{file} holds other values than config.json says; {_ADVICE}")
    return {
        name: jax.device_put(arrays[name].astype(like.dtype), like.sharding)
        for name, like in tree.items()
    }


@contextlib.contextmanager
def damage_refused(message: Callable[[str], str]) -> Iterator[None]:
    """Reading with Orbax and TensorStore, which raise many types of errors for damaged files.

    Args:
        message: from the first line of their error.

    Raises:
        UserError: with that message.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise UserError(message(first_line(error))) from error


@contextlib.contextmanager
def _restoring(weights: Path) -> Iterator[ocp.Checkpointer]:
    """An Orbax checkpointer for reading `weights` in this process alone.

    Raises:
        UserError: whatever Orbax raises for files that are damaged or missing.
    """
    import jax
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        # Each process reads its own part without waiting for the others, which may not read at all.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with (
        ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer,
        damage_refused(lambda error: f"{weights} is damaged ({error}); {_ADVICE}"),
    ):
        yield checkpointer


def _check_files(
    weights: Path, checkpointer: ocp.Checkpointer, stored: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the shapes of the arrays on disk with those that config.json says."""
    metadata = checkpointer.metadata(weights).item_metadata
    found = {name: tuple(meta.shape) for name, meta in dict(metadata).items()}
    if found != dict(stored):
        raise UserError(f"{weights}: its arrays are not those that config.json names; {_ADVICE}")


def _stored(
    checkpointer: ocp.Checkpointer, weights: Path, record: FolderRecord
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, NumPy array) of all stored arrays in the order of their names, a part at a time."""
    import jax

    cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    dtype = as_dtype(record.dtype)
    part: dict[str, jax.ShapeDtypeStruct] = {}
    size = 0
    names = sorted(record.shapes)
    for name in names:
        shape = tuple(record.shapes[name])
        part[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=cpu)
        size += math.prod(shape) * dtype.itemsize
        if size >= _PART_BYTES or name == names[-1]:
            for key, array in sorted(_restore(checkpointer, weights, part).items()):
                yield key, np.asarray(array)
            part, size = {}, 0


def _restore(
    checkpointer: ocp.Checkpointer, weights: Path, tree: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    import orbax.checkpoint as ocp

    arguments = ocp.checkpoint_utils.construct_restore_args(dict(tree))
    return checkpointer.restore(
        weights,
        args=ocp.args.PyTreeRestore(item=dict(tree), restore_args=arguments, partial_restore=True),
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def as_sharding(sharding: Placement, name: str, shape: Sequence[int]) -> Sharding:
    """The sharding of one array, of what `load_checkpoint` takes."""
    import jax

    if sharding is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(sharding, jax.sharding.Sharding):
        return sharding
    return sharding(name, tuple(shape))
