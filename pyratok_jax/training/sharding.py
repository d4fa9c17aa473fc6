"""Where arrays live on the mesh: one table of rules, for every pod size.

| what | rule |
|---|---|
| batches | rows over (slice, data, fsdp), frame height over spatial |
| trainable and frozen parameters, optimizer state | largest divisible axis over fsdp, then tensor |
| counters, keys, small vectors | one copy per device |
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pyratok_jax.errors import UserError

AXES = ("slice", "data", "fsdp", "spatial", "tensor")
BATCH_AXES = ("slice", "data", "fsdp")
# Smaller parameters cost more to gather than they take room.
MIN_SHARDED_SIZE = 2**14


def make_mesh(config: Mapping[str, int], devices: Any = None) -> Mesh:
    """The device mesh.

    Args:
        config: sizes of data, fsdp, spatial, tensor and slices; one of them may be -1.
        devices: all of JAX's when None.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).reshape(-1)
    sizes = [config["slices"], *(config[axis] for axis in AXES[1:])]
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes or len(devices) % known:
        raise UserError(_refusal(config, len(devices)))
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if int(np.prod(sizes)) != len(devices):
        raise UserError(_refusal(config, len(devices)))
    if sizes[0] > 1 and hasattr(devices[0], "slice_index"):
        grid = mesh_utils.create_hybrid_device_mesh(
            [1, *sizes[1:]], [sizes[0], *([1] * (len(AXES) - 1))], devices.tolist()
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(sizes, devices.tolist())
    else:
        grid = devices.reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _refusal(config: Mapping[str, int], count: int) -> str:
    sizes = ", ".join(f"{key} {config[key]}" for key in ("slices", *AXES[1:]))
    return (
        f"config.mesh ({sizes}) does not fit {count} devices: the sizes must multiply to that "
        "number; set one of them to -1 to take what is left"
    )


def parameter_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The rule for one parameter: its largest divisible axis over fsdp, the next over tensor."""
    spec: list[str | None] = [None] * len(shape)
    if int(np.prod(shape)) >= MIN_SHARDED_SIZE:
        for name in ("fsdp", "tensor"):
            size = mesh.shape[name]
            free = [i for i, n in enumerate(shape) if spec[i] is None and n % size == 0 and n > 1]
            if size > 1 and free:
                # Of equal axes the last: kernels end in their output channels.
                spec[max(free, key=lambda i: (shape[i], i))] = name
    return PartitionSpec(*spec)


def parameter_shardings(tree: Any, mesh: Mesh) -> Any:
    """Shardings for a tree of arrays or shapes: parameters, frozen weights, optimizer state."""
    return jax.tree.map(lambda x: NamedSharding(mesh, parameter_spec(tuple(x.shape), mesh)), tree)


def batch_spec(ndim: int) -> PartitionSpec:
    """Rows over all batch axes; of a video (b, t, h, w, c) also the height over spatial."""
    if ndim == 5:
        return PartitionSpec(BATCH_AXES, None, "spatial")
    return PartitionSpec(BATCH_AXES)


def batch_shardings(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Shardings of a batch's arrays."""
    return {name: NamedSharding(mesh, batch_spec(np.ndim(x))) for name, x in batch.items()}


def to_mesh(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as parts of global arrays."""
    shardings = batch_shardings(batch, mesh)
    return {
        name: jax.make_array_from_process_local_data(shardings[name], np.asarray(value))
        for name, value in batch.items()
    }
