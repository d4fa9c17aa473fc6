"""Host-to-device transfer: weights, batches and a few numbers of each process become global arrays.

Which rows of a batch a process reads follows from the mesh. Processes whose devices hold the same
rows (they split frames by height, or parameters, and not clips) read the same clips.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from pyratok_jax.errors import UserError
from pyratok_jax.training.distributed.sharding import batch_shardings, batch_spec


class DataShard(NamedTuple):
    """This process reads shard `shard_index` of `shard_count` equal shards of a batch's rows."""

    shard_index: int
    shard_count: int


def data_shard(mesh: Mesh, rows: int, *, process: int | None = None) -> DataShard:
    """The shard of a global batch of `rows` clips that a process reads.

    Where each process's rows are contiguous on the mesh, the global batch is, row for row, that of
    a single process; on other meshes it has the same rows in another order.

    Args:
        mesh: of all processes.
        rows: of the batch over all processes.
        process: which one; None: this one.

    Raises:
        UserError: the rows do not split over the mesh, or not into whole shards per process.
    """
    process = jax.process_index() if process is None else process
    if len({device.process_index for device in mesh.devices.flat}) == 1:
        return DataShard(0, 1)
    sharding = NamedSharding(mesh, batch_spec((rows,), mesh))
    try:
        places: Any = sharding.devices_indices_map((rows,))
    except ValueError as error:
        raise UserError(
            f"config.batch_size {rows} does not split over config.mesh ({dict(mesh.shape)}); take "
            "a multiple of slices x data x fsdp"
        ) from error
    held: dict[int, set[tuple[int, int]]] = {}
    for device, index in places.items():
        first, last, _ = index[0].indices(rows)
        held.setdefault(device.process_index, set()).add((first, last))
    shards = sorted({tuple(sorted(blocks)) for blocks in held.values()})
    blocks = [block for shard in shards for block in shard]
    if len(blocks) != len(set(blocks)) or len({len(shard) for shard in shards}) != 1:
        raise UserError(
            f"config.mesh ({dict(mesh.shape)}) gives processes rows of a batch that overlap in "
            "part; make slices x data x fsdp a multiple or a divisor of the number of processes"
        )
    return DataShard(shards.index(tuple(sorted(held[process]))), len(shards))


def batch_to_mesh(local: Mapping[str, np.ndarray], mesh: Mesh, rows: int) -> dict[str, Array]:
    """Global arrays of `rows` rows out of the rows that this process has read."""
    shapes = {name: (rows, *np.shape(x)[1:]) for name, x in local.items()}
    whole = {name: jax.ShapeDtypeStruct(shapes[name], x.dtype) for name, x in local.items()}
    shardings = batch_shardings(whole, mesh)
    return {
        name: jax.make_array_from_process_local_data(shardings[name], np.asarray(x), shapes[name])
        for name, x in local.items()
    }


def host_to_mesh(tree: PyTree, shardings: PyTree) -> PyTree:
    """Global arrays out of arrays that every process holds whole; of each, the parts it owns."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def place(x: Array | np.ndarray, sharding: NamedSharding) -> Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree, shardings)


class ProcessAllGather:
    """An all-gather of a few numbers of every process, by one small program on the mesh.

    Unlike `jax.experimental.multihost_utils.process_allgather` it does not block: `start` queues
    the program behind the step in progress and `finish` is called when the result is due anyway.
    """

    def __init__(self, mesh: Mesh):
        self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._owners = [device.process_index for device in mesh.devices.flat]
        self._local = self._owners.count(jax.process_index())

    def start(self, values: Sequence[float]) -> Float[Array, "devices values"]:
        """Begin to gather; all processes must call this equally often."""
        mine = np.tile(np.asarray(values, np.float32), (self._local, 1))
        shape = (len(self._owners), len(values))
        return self._gather(jax.make_array_from_process_local_data(self._rows, mine, shape))

    def finish(
        self, started: Float[Array, "devices values"]
    ) -> Float[np.ndarray, "processes values"]:
        """Wait for the result: one row per process, in the order of their indices."""
        rows = np.asarray(started)
        return np.stack([rows[self._owners.index(i)] for i in range(max(self._owners) + 1)])
