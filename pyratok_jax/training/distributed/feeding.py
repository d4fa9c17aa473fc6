"""From one process's memory onto the mesh: weights, rows of batches, a few numbers of each process.

Which rows of a batch a process reads follows from the mesh: processes whose devices hold the same
rows (the others split heights or parameters) read the same clips.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pyratok_jax.errors import UserError
from pyratok_jax.training.distributed.sharding import batch_shardings, batch_spec


class Share(NamedTuple):
    """A process reads this part of so many equal parts of every batch's rows."""

    part: int
    parts: int


def data_share(mesh: Mesh, rows: int, *, process: int | None = None) -> Share:
    """The rows of a batch of `rows` clips (over all processes) that a process reads.

    Where each process's rows lie side by side on the mesh the global batch is, row for row, that of
    a single process; on other meshes it has the same rows in another order.

    Raises:
        UserError: the rows do not split over the mesh, or not into whole parts per process.
    """
    process = jax.process_index() if process is None else process
    if len({device.process_index for device in mesh.devices.flat}) == 1:
        return Share(0, 1)
    sharding = NamedSharding(mesh, batch_spec((rows,), mesh))
    try:
        places: Any = sharding.devices_indices_map((rows,))
    except ValueError as error:
        raise UserError(
            f"config.batch_size {rows} does not split over config.mesh ({dict(mesh.shape)}); take "
            "a multiple of slices x data x fsdp"
        ) from error
    held: dict[int, set[tuple[int, ...]]] = {}
    for device, index in places.items():
        held.setdefault(device.process_index, set()).add(index[0].indices(rows)[:2])
    parts = sorted({tuple(sorted(blocks)) for blocks in held.values()})
    blocks = [block for part in parts for block in part]
    if len(blocks) != len(set(blocks)) or len({len(part) for part in parts}) != 1:
        raise UserError(
            f"config.mesh ({dict(mesh.shape)}) gives processes rows of a batch that overlap in "
            "part; make slices x data x fsdp a multiple or a divisor of the number of processes"
        )
    return Share(parts.index(tuple(sorted(held[process]))), len(parts))


def to_mesh(batch: Mapping[str, np.ndarray], mesh: Mesh, parts: int = 1) -> dict[str, jax.Array]:
    """Global arrays out of this process's rows, which are one of `parts` of the whole batch."""
    local = {name: np.asarray(value) for name, value in batch.items()}
    shapes = {name: (x.shape[0] * parts, *x.shape[1:]) for name, x in local.items()}
    whole = {name: jax.ShapeDtypeStruct(shapes[name], x.dtype) for name, x in local.items()}
    shardings = batch_shardings(whole, mesh)
    return {
        name: jax.make_array_from_process_local_data(shardings[name], x, shapes[name])
        for name, x in local.items()
    }


def spread(tree: Any, shardings: Any) -> Any:
    """Arrays that every process holds whole, laid out over the devices of all of them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


class Exchange:
    """A few numbers of every process to every process, by one small program on the mesh."""

    def __init__(self, mesh: Mesh):
        self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._owners = [device.process_index for device in mesh.devices.flat]
        self._local = self._owners.count(jax.process_index())

    def send(self, values: Sequence[float]) -> jax.Array:
        """Begin; all processes must call this equally often. Hand the result to `receive`."""
        mine = np.tile(np.asarray(values, np.float32), (self._local, 1))
        shape = (len(self._owners), len(values))
        return self._gather(jax.make_array_from_process_local_data(self._rows, mine, shape))

    def receive(self, sent: jax.Array) -> np.ndarray:
        """(processes, values), in the order of the processes; waits for what was sent."""
        rows = np.asarray(sent)
        return np.stack([rows[self._owners.index(i)] for i in range(max(self._owners) + 1)])
