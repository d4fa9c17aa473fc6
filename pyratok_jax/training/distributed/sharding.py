"""Sharding of every array over the mesh: one table of rules, for every pod size.

| what | rule |
|---|---|
| batch of enough clips | clips over (slice, data, fsdp, spatial), frames whole |
| batch of fewer clips | clips over (slice, data, fsdp), height of frames over spatial |
| activations | as the batch; split frames exchange halos (`nn.partitioning`) |
| tokens of the language model | clips as the batch; of split frames tokens over spatial |
| frozen VAE, language model, LPIPS, DINO | largest divisible axis over fsdp, the next over tensor |
| LoRA, LaPQ, synthesis, alignment, projections | the same |
| prior over tokens: layers, head, embeddings | the same |
| KV cache of a prior | rows as the batch, key-value heads over tensor |
| optimizer state, moving averages | as the parameter that they belong to |
| arrays below 16,384 values, counters, keys | replicated |
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from pyratok_jax.errors import UserError
from pyratok_jax.nn.trace import Split

# Arrays, host arrays or abstract shapes.
Shaped = jax.Array | np.ndarray | jax.ShapeDtypeStruct
AXES = ("slice", "data", "fsdp", "spatial", "tensor")
BATCH_AXES = ("slice", "data", "fsdp")
# Gathering smaller parameters costs more than the memory that sharding saves.
MIN_SHARDED_SIZE = 2**14


def make_mesh(
    config: Mapping[str, int], devices: Sequence[jax.Device] | np.ndarray | None = None
) -> Mesh:
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
            [1, *sizes[1:]],
            [sizes[0], *([1] * (len(AXES) - 1))],
            devices.tolist(),
            allow_split_physical_axes=True,
        )
    elif devices[0].platform == "tpu":
        # An axis of 32 on a torus of 4x4x4 takes half of one of its axes.
        grid = mesh_utils.create_device_mesh(
            sizes, devices.tolist(), allow_split_physical_axes=True
        )
    else:
        grid = devices.reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _refusal(config: Mapping[str, int], count: int) -> str:
    sizes = ", ".join(f"{key} {config[key]}" for key in ("slices", *AXES[1:]))
    return (
        f"config.mesh ({sizes}) does not fit {count} devices: the sizes must multiply to that "
        "number; set one of them to -1 to take the remaining devices"
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


def parameter_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Shardings for a tree of arrays or shapes: parameters, frozen weights, optimizer state."""
    return jax.tree.map(lambda x: NamedSharding(mesh, parameter_spec(tuple(x.shape), mesh)), tree)


def replicated(arrays: Mapping[str, Shaped], mesh: Mesh, limit: int) -> list[str]:
    """Names of parameters of at least `limit` values that are replicated."""
    return [
        name
        for name, x in arrays.items()
        if int(np.prod(x.shape)) >= limit
        and not any(parameter_spec(tuple(x.shape), mesh))
        and mesh.size > 1
    ]


def height_axis(rows: int, mesh: Mesh | AbstractMesh | None = None) -> str | None:
    """The mesh axis that shards the height of a batch of `rows` clips: spatial, or None.

    Whole frames are cheaper, since they need no halo exchange. Heights are sharded where there are
    too few clips for all devices. The mesh is that of `jax.set_mesh` when none is given.
    """
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    spatial = dict(mesh.shape).get("spatial", 1)
    if spatial == 1 or rows % (row_groups(mesh) * spatial) == 0:
        return None
    return "spatial"


def row_groups(mesh: Mesh | AbstractMesh) -> int:
    """Number of shards of the clips where heights are sharded."""
    return int(np.prod([dict(mesh.shape).get(axis, 1) for axis in BATCH_AXES]))


def split_of(rows: int, mesh: Mesh | AbstractMesh | None = None) -> Split:
    """How a batch of `rows` clips is sharded over the mesh, for the models; see `height_axis`."""
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    height = height_axis(rows, mesh)
    sizes = dict(mesh.shape)
    clips = BATCH_AXES if height else (*BATCH_AXES, "spatial")
    return Split(tuple(axis for axis in clips if sizes.get(axis, 1) > 1), height)


def parts_of(rows: int, most: int) -> int:
    """Number of microbatches, at most `most`, that leave every device a clip.

    The mesh is that of `jax.set_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    whole = height_axis(rows, mesh) is None
    groups = row_groups(mesh) * (dict(mesh.shape).get("spatial", 1) if whole else 1)
    return math.gcd(most, max(rows // groups, 1))


def batch_spec(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Clips over all batch axes and spatial; where there are too few, heights over spatial."""
    if height_axis(shape[0], mesh) is None:
        return PartitionSpec((*BATCH_AXES, "spatial"))
    if len(shape) == 5:
        return PartitionSpec(BATCH_AXES, None, "spatial")
    return PartitionSpec(BATCH_AXES)


def cache_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """A prior's KV cache (layers, rows, slots, kv, d): key-value heads over tensor."""
    heads = "tensor" if shape[3] % mesh.shape["tensor"] == 0 else None
    return PartitionSpec(None, batch_spec(shape[1:2], mesh)[0], None, heads)


def batch_shardings(batch: Mapping[str, Shaped], mesh: Mesh) -> dict[str, NamedSharding]:
    """Shardings of a (global) batch's arrays."""
    return {name: NamedSharding(mesh, batch_spec(np.shape(x), mesh)) for name, x in batch.items()}
