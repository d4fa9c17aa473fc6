"""Batch and height sharding of convolutional networks with `shard_map` and halo exchange.

Inside `over_devices` a network runs with every device computing its own clips, and where there are
too few clips for all devices, its own rows of each frame (`nn.halo`): halo rows are fetched from
the neighbours, attention rotates keys and values around the ring, no frame is ever gathered. The
mesh is that of `jax.set_mesh`.

Convolutions of sharded frames are never left to GSPMD. On a mesh with a replicated axis (one over
which neither clips nor heights are sharded, such as tensor) it all-reduces partial kernel gradients
over that axis too: gradients come out scaled by its size, and with kernels that are sharded over
that axis the values as well.
"""

import contextlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree, Shaped

from pyratok_jax.nn import trace
from pyratok_jax.nn.halo import sharded_height
from pyratok_jax.nn.stream_cache import StreamCache
from pyratok_jax.nn.trace import Split

M = TypeVar("M", bound=nnx.Module)
T = TypeVar("T")
R = TypeVar("R")
Inputs = ParamSpec("Inputs")


def over_devices(split: Split) -> contextlib.AbstractContextManager[None]:
    """Trace models on videos that are sharded over the mesh in this way."""
    return trace.override(split=split)


def shards_height() -> bool:
    """Whether the height of frames is sharded."""
    return trace.current().split.height is not None


def height_parts() -> int:
    """Devices that share each frame."""
    axis = trace.current().split.height
    return 1 if axis is None else jax.sharding.get_abstract_mesh().shape[axis]


def constrain_batch_sharding(x: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """`x` with its batch sharded over the devices: GSPMD then all-gathers weights (FSDP)."""
    clips = trace.current().split.clips
    return jax.lax.with_sharding_constraint(x, P(clips)) if clips else x


def can_shard_tokens(n: int) -> bool:
    """Whether sequences of `n` tokens can be sharded over the devices that share a frame."""
    return shards_height() and n % height_parts() == 0


def constrain_token_sharding(x: Shaped[Array, "b n ..."]) -> Shaped[Array, "b n ..."]:
    """`constrain_batch_sharding`, and tokens sharded over the devices that share a frame."""
    split = trace.current().split
    if not can_shard_tokens(x.shape[1]):
        return constrain_batch_sharding(x)
    return jax.lax.with_sharding_constraint(x, P(split.clips or None, split.height))


def token_multiple() -> int:
    """Multiple to which sequences are padded for sharding; 1 where none is sharded.

    Every device then has whole rows of a TPU's tiles.
    """
    return 8 * height_parts() if shards_height() else 1


def convolve(
    layer: Callable[..., Array], x: Float[Array, "b t h w c"], cache: StreamCache | None = None
) -> Float[Array, "b t h w d"]:
    """`layer(x, cache)` for a convolution that keeps the size, each device computing its part.

    That is its clips, or its rows of them. Of whole clips too: from some 100 chips on, the
    compiler's partitioner sends all clips to all chips rather than gather a kernel that is sharded
    (FSDP). Grids whose rows do not divide are replicated: every device computes them whole.
    """
    split = trace.current().split
    if not split.axes or cache is not None:
        return layer(x, cache)
    if split.height and x.shape[2] % jax.sharding.get_abstract_mesh().shape[split.height]:
        return layer(jax.lax.with_sharding_constraint(x, P(split.clips or None)), cache)
    graph, state = nnx.split(layer)

    def local(state: nnx.State, x: Array) -> Array:
        with _rows(split):
            return nnx.merge(graph, state)(x)

    return _shard(local, (P(), split.spec), split.spec, split)(state, x)


def with_replicated_kernels(network: M) -> M:
    """A frozen network of images with its convolution kernels replicated, where clips are sharded.

    The compiler is left no choice between gathering kernels and sending images (see `convolve`).
    """
    if not trace.current().split.axes:
        return network
    graph, state = nnx.split(network)
    return nnx.merge(
        graph,
        jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, P()) if x.ndim == 4 else x, state
        ),
    )


def sum_over_devices(run: Callable[..., Array], *videos: Float[Array, "b t h w c"]) -> Array:
    """Sum over the devices of `run` on each one's shard (see `halo.height_axis`)."""
    split = trace.current().split

    def local(*parts: Array) -> Array:
        with _rows(split):
            return jax.lax.psum(run(*parts), split.axes)

    return _shard(local, (split.spec,) * len(videos), P(), split)(*videos)


def per_device(run: Callable[[M, T], R], module: M, x: T) -> R:
    """`run(module, x)` in `shard_map`: every device computes its clips, or its rows of frames.

    Every array of `x` and of the result has axes (b, t, h, ...).
    """
    split = trace.current().split
    if not split.axes:
        return run(module, x)
    graph, state = nnx.split(module)

    def local(state: nnx.State, x: T) -> R:
        with _rows(split):
            return run(nnx.merge(graph, state), x)

    return _shard(local, (P(), split.spec), split.spec, split)(state, x)


def _rows(split: Split) -> contextlib.AbstractContextManager:
    return sharded_height(split.height) if split.height else contextlib.nullcontext()


def _shard(
    local: Callable[Inputs, R], inputs: PyTree, outputs: PyTree, split: Split
) -> Callable[Inputs, R]:
    # Loop carries start as constants and become different per device, which the check forbids.
    return jax.shard_map(
        local, in_specs=inputs, out_specs=outputs, axis_names=set(split.axes), check_vma=False
    )
