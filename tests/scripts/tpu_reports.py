"""Compiles small programs for a TPU slice and prints what is reported of each, as JSON.

Arguments: `programs`, `slices`, `convolution` or `attention`, and the slice.
"""

import json
import os
import sys
from typing import Any

from pyratok_jax.pods.topology import Slice, describe, parse_slice, prepare


def programs(where: Slice) -> list[dict[str, Any]]:
    """A scan in full and until its memory is known, and a program that needs too much memory."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from pyratok_jax.pods.programs import StepProgram
    from pyratok_jax.pods.report import measure
    from pyratok_jax.training.distributed.sharding import make_mesh

    sizes = {"data": -1, "fsdp": 1, "spatial": 1, "tensor": 1, "slices": 1}
    mesh = make_mesh(sizes, describe(where))

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        rows = NamedSharding(mesh, PartitionSpec("data"))
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=rows)

    def run(x: jax.Array, w: jax.Array) -> jax.Array:
        x = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]
        return jnp.sum(x.astype(jnp.float32))

    small = StepProgram(run, (shape(512, 1024), shape(1024, 1024)), (), None, 4)
    huge = StepProgram(lambda x: jnp.outer(x, x), (shape(1 << 19),), (), None, 4)
    return [
        measure(small, mesh, where, model_flops=7 * 2 * 512 * 1024**2),
        measure(small, mesh, where, effort="memory"),
        measure(huge, mesh, where),
    ]


def slices(where: Slice) -> list[dict[str, Any]]:
    """A gradient step with the batch over two slices and the weights over the chips of each."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from pyratok_jax.pods.programs import StepProgram
    from pyratok_jax.pods.report import measure
    from pyratok_jax.training.distributed.sharding import make_mesh

    sizes = {"data": 1, "fsdp": -1, "spatial": 1, "tensor": 1, "slices": 2}
    mesh = make_mesh(sizes, describe(where, 2))

    def shape(spec: PartitionSpec, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=NamedSharding(mesh, spec))

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return w - jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w)

    w = shape(PartitionSpec("fsdp"), 512, 1024)
    x = shape(PartitionSpec(("slice", "fsdp")), 128, 512)
    program = StepProgram(step, (w, x), (), w.sharding, 128)
    return [measure(program, mesh, where, effort=effort) for effort in ("full", "memory")]


def convolution(where: Slice) -> list[dict[str, Any]]:
    """A level's convolution of one clip on every chip, its kernel sharded over four of them."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from pyratok_jax.nn.causal_conv import CausalConv3d
    from pyratok_jax.nn.partitioning import convolve, over_devices
    from pyratok_jax.pods.programs import StepProgram, placed, placed_batch
    from pyratok_jax.pods.report import measure
    from pyratok_jax.training.distributed.sharding import make_mesh, parameter_shardings, split_of

    mesh = make_mesh(
        {"data": -1, "fsdp": 4, "spatial": 1, "tensor": 1, "slices": 1}, describe(where)
    )
    clips = mesh.size
    graph, state = nnx.split(
        nnx.eval_shape(
            lambda: CausalConv3d(512, 512, (3, 3, 3), rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
        )
    )
    x = placed_batch({"x": jax.ShapeDtypeStruct((clips, 5, 32, 32, 512), jnp.bfloat16)}, mesh)["x"]

    def run(state: nnx.State, x: jax.Array) -> jax.Array:
        with over_devices(split_of(clips, mesh)):
            return convolve(nnx.merge(graph, state), x)

    arguments = (placed(state, parameter_shardings(state, mesh)), x)
    return [measure(StepProgram(run, arguments, (), None, clips), mesh, where, effort="low")]


def attention(where: Slice) -> list[dict[str, Any]]:
    """Causal attention and its gradient, a clip on every chip: as a kernel, and left to XLA."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pyratok_jax.models.language.fused_attention import attention_kernel
    from pyratok_jax.models.prior.attention import attend_static
    from pyratok_jax.models.prior.layout import Visibility
    from pyratok_jax.nn.partitioning import over_devices
    from pyratok_jax.pods.programs import StepProgram, placed_batch
    from pyratok_jax.pods.report import measure
    from pyratok_jax.training.distributed.sharding import make_mesh, split_of

    sizes = {"data": -1, "fsdp": 2, "spatial": 1, "tensor": 1, "slices": 1}
    mesh = make_mesh(sizes, describe(where))
    clips, n = mesh.size, 2500
    order = np.arange(n, dtype=np.int32)
    seen = Visibility(order, order + 1, np.full(n, -1, np.int32))
    arrays = {
        name: jax.ShapeDtypeStruct((clips, n, heads, 128), jnp.bfloat16)
        for name, heads in (("query", 4), ("key", 2), ("value", 2))
    }
    batch = placed_batch(arrays | {"valid": jax.ShapeDtypeStruct((clips, n), bool)}, mesh)

    def run(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def loss(arrays: dict[str, jax.Array]) -> jax.Array:
            pooled = attend_static(**arrays, valid=batch["valid"], seen=seen, window=0)
            return jnp.sum(pooled.astype(jnp.float32) ** 2)

        with over_devices(split_of(clips, mesh)), jax.named_scope("prior_attention"):
            return jax.grad(loss)({name: batch[name] for name in arrays})

    program = StepProgram(run, (batch,), (), None, clips)
    found = []
    for kernel in (True, False):
        with attention_kernel(kernel):
            found.append(measure(program, mesh, where, model_flops=clips * 7 * n**2 * 512))
    return found


CASES = {
    "programs": programs, "slices": slices, "convolution": convolution, "attention": attention,
}  # fmt: skip

if __name__ == "__main__":
    where = parse_slice(sys.argv[2])
    # Before JAX is imported.
    prepare(where)
    print(json.dumps(CASES[sys.argv[1]](where)))
    sys.stdout.flush()
    # libtpu's threads would keep the process for a while.
    os._exit(0)
