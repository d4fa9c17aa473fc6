"""What a training left in its working folder: the newest checkpoint, parameters, checksums.

Checksums are stored beside the arrays: a flipped bit is seen when they are read. The checksum of an
array is the sum of its bytes weighted by odd numbers of their position, modulo 2^64. A sum can be
taken over any shards in any order, so it does not depend on the mesh.
"""

import contextlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.typing import ArrayLike
from jaxtyping import PyTree

from pyratok_jax.checkpoints import verification
from pyratok_jax.checkpoints.partition import Arrays
from pyratok_jax.checkpoints.weights import damage_refused
from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import read_json
from pyratok_jax.io.remote import AnyPath, absolute, is_remote

_PART = 1 << 22  # Bytes weighted at once.


@contextlib.contextmanager
def only_errors() -> Iterator[None]:
    """Hold back warnings of Orbax that no user can act on."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def checksums(tree: PyTree) -> dict[str, int]:
    """Path of a leaf -> checksum of this process's share of it.

    Every element is counted by exactly one process; shares add up modulo 2^64.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _share(leaf) for path, leaf in leaves}


def _share(leaf: ArrayLike) -> int:
    if not isinstance(leaf, jax.Array):
        array = np.asarray(leaf)
        return _sum(array, tuple(slice(0, n) for n in array.shape), array.shape)
    total = 0
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            total += _sum(np.asarray(shard.data), shard.index, leaf.shape)
    return total % 2**64


def _sum(values: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """The weighted sum of a block of an array of `shape` that starts where `index` does."""
    if values.size == 0:
        return 0
    rows = np.ascontiguousarray(values).reshape(-1, values.shape[-1] if values.ndim else 1)
    starts = [part.start or 0 for part in index]
    strides = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    size = values.dtype.itemsize
    # Number of the first element of every row in the whole array.
    grid = np.zeros(values.shape[:-1] if values.ndim else (1,), np.uint64)
    for axis in range(values.ndim - 1):
        numbers = (np.arange(values.shape[axis]) + starts[axis]) * strides[axis]
        grid += numbers.astype(np.uint64).reshape([-1] + [1] * (values.ndim - 2 - axis))
    first = grid.reshape(-1) + np.uint64(starts[-1] if starts else 0)
    inner = np.arange(rows.shape[1] * size, dtype=np.uint64)
    step = max(_PART // (rows.shape[1] * size), 1)
    total = 0
    for begin in range(0, len(rows), step):
        data = rows[begin : begin + step].view(np.uint8).astype(np.uint64)
        weights = (first[begin : begin + step, None] * np.uint64(size) + inner) * np.uint64(2)
        total += int((data * (weights + np.uint64(1))).sum(dtype=np.uint64))
    return total % 2**64


def check(tree: PyTree, recorded: Mapping[str, int], where: str, advice: str) -> None:
    """Compare arrays that this process holds whole with their recorded checksums.

    Leaves that the record does not name are not compared.

    Raises:
        UserError: an array differs.
    """
    for path, found in checksums(tree).items():
        if path in recorded and recorded[path] != found:
            raise UserError(f"{where}: {path} holds other bits than were saved; {advice}")


CHECKSUMS = "checksums"  # key of a checkpoint's data item


def newest_step(workdir: AnyPath) -> int | None:
    """Step of the newest complete checkpoint of a working folder."""
    return max(steps_of(workdir), default=None)


def steps_of(workdir: AnyPath) -> list[int]:
    """Steps of the complete checkpoints of a working folder, ascending."""
    folder = workdir / "checkpoints"
    steps = [path for path in folder.iterdir() if is_step(path.name)] if folder.is_dir() else []
    if is_remote(folder):
        # On a disk Orbax renames what is complete; an object marks it on a storage service.
        steps = [path for path in steps if (path / "commit_success.txt").exists()]
    return sorted(int(path.name) for path in steps)


def is_step(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint."""
    return name.isascii() and name.isdigit()


def older_advice(workdir: AnyPath, step: int) -> str:
    """What to do about a damaged checkpoint."""
    older = [other for other in steps_of(workdir) if other < step]
    place = workdir / "checkpoints"
    if older:
        return f"remove {place / str(step)} to use step {older[-1]}, or restore it from a copy"
    return f"restore {place / str(step)} from a copy, or train again in another --workdir"


def read_parameters(workdir: AnyPath, step: int, prefer_ema: bool = True) -> Arrays:
    """Trainable arrays by name of one checkpoint (their averages, where it keeps some).

    Raises:
        UserError: it cannot be read.
    """
    path = absolute(workdir / "checkpoints" / str(step) / "state")
    advice = older_advice(workdir, step)
    with (
        damage_refused(
            lambda error: f"{path.parent} is no readable checkpoint ({error}); {advice}"
        ),
        _reader() as checkpointer,
    ):
        with only_errors():  # It misses a file of the folder above in that of the arrays.
            meta = checkpointer.metadata(path).item_metadata
        tree = jax.tree.map(_abstract_on_host, dict(meta))
        state = checkpointer.restore(path, args=ocp.args.StandardRestore(tree))
    if verification.enabled():
        data = path.parent / "data" / "metadata"
        recorded = read_json(data, advice=advice) if data.exists() else {}
        recorded = recorded.get(CHECKSUMS) if isinstance(recorded, dict) else None
        check(dict(state), recorded or {}, str(path), advice)
    return state["ema"] if prefer_ema and state.get("ema") else state["params"]


def _reader() -> ocp.Checkpointer:
    """Reads in this process alone, whatever the others of a run do."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    if jax.process_count() == 1:
        alone = ocp.options.MultiprocessingOptions()
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _abstract_on_host(meta: ocp.metadata.ArrayMetadata) -> jax.ShapeDtypeStruct:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(meta.shape, meta.dtype, sharding=device)
