"""Networks on split frames, beside an axis of the mesh over which only kernels are sharded.

The compiler's partitioner would double the gradients of kernels here. Run with 8 devices.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from pyratok_jax.models.perceptual.lpips import LPIPS
from pyratok_jax.models.pyratok.lapq import LateralConnection
from pyratok_jax.models.pyratok.synthesis import Synthesis
from pyratok_jax.nn import partitioning
from pyratok_jax.nn.lowering import conv_lowering
from pyratok_jax.training.distributed import sharding
from pyratok_jax.training.distributed.sharding import (
    batch_spec,
    make_mesh,
    parameter_shardings,
    split_of,
)


class Case(NamedTuple):
    network: nnx.Module
    shape: tuple[int, ...]
    loss: Callable[[nnx.Module, jax.Array], jax.Array]


def sum_of_sines(network: nnx.Module, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(network(x)))


def lowered_for_tpus(layer: nnx.Module, x: jax.Array) -> jax.Array:
    with conv_lowering("tpu"):
        return jnp.sum(jnp.sin(partitioning.convolve(layer, x)))


def distance(network: nnx.Module, x: jax.Array) -> jax.Array:
    target = jax.random.uniform(jax.random.key(0), x.shape, minval=-1.0)
    frames = [video.reshape(-1, *video.shape[2:]) for video in (x, target)]
    return jnp.mean(partitioning.with_replicated_kernels(network)(*frames))


def cases() -> dict[str, Case]:
    synthesis = Synthesis((4, 16), (4, 8), 4, 4, 8, rngs=nnx.Rngs(0))
    synthesis.smooth_out.kernel[...] = synthesis.smooth_in.kernel[...].swapaxes(-1, -2)
    lateral = LateralConnection(4, (4, 8), (4, 16), 8, rngs=nnx.Rngs(1))
    return {
        "synthesis": Case(synthesis, (2, 1, 4, 4, 4), sum_of_sines),
        # A grid with three rows, which do not split.
        "odd": Case(synthesis, (2, 1, 3, 4, 4), sum_of_sines),
        # With its derivative written out, as on TPUs.
        "tpu": Case(synthesis.smooth_in, (2, 2, 8, 4, 4), lowered_for_tpus),
        "lateral": Case(lateral, (2, 2, 8, 8, 4), sum_of_sines),
        "lpips": Case(LPIPS("alex", rngs=nnx.Rngs(2)), (2, 1, 64, 32, 3), distance),
    }


def check(name: str, case: Case, mesh: jax.sharding.Mesh) -> None:
    graph, state = nnx.split(case.network)
    x = jax.random.normal(jax.random.key(1), case.shape)
    run = jax.value_and_grad(lambda s, x: case.loss(nnx.merge(graph, s), x), argnums=(0, 1))

    def split(state: nnx.State, x: jax.Array):
        with partitioning.over_devices(split_of(2)):
            return run(state, x)

    whole, wanted = jax.jit(run)(state, x)
    with jax.set_mesh(mesh):
        shape = case.shape if name != "odd" else case.shape[:1]
        place = NamedSharding(mesh, batch_spec(shape, mesh))
        placed = jax.device_put(state, parameter_shardings(state, mesh))
        value, found = jax.jit(split)(placed, jax.device_put(x, place))
    assert abs(float(value / whole) - 1) < 1e-5, (name, value, whole)
    if name == "lpips":  # Its weights are frozen.
        wanted, found = wanted[1], found[1]
    worst = jax.tree.map(
        lambda a, b: float(abs(a - jax.device_get(b)).max() / abs(a).max()), wanted, found
    )
    assert max(jax.tree.leaves(worst)) < 1e-5, (name, worst)


def main() -> None:
    sharding.MIN_SHARDED_SIZE = 16
    mesh = make_mesh({"data": 2, "fsdp": 1, "spatial": 2, "tensor": 2, "slices": 1})
    for name, case in cases().items():
        check(name, case, mesh)


if __name__ == "__main__":
    main()
