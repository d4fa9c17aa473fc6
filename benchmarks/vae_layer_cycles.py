"""Layers of the Wan VAE alone, compiled for one v5p chip: estimated cycles forward and backward.

    python benchmarks/vae_layer_cycles.py [residual_96 output ...] [--what forward,input,adapter]
        [--effort medium] [--top 6]

Sizes are those of a 17x512x512 clip on one chip, in eight strips. `forward` is the layer; `input`
the layer and the gradient of its input; `adapter` also that of a rank-16 adapter. No TPU is needed,
but the package libtpu. A minute each on one core.
"""

import argparse
import os
import tempfile
from pathlib import Path

from pyratok_jax.pods.topology import describe, parse_slice, prepare

CHIP = parse_slice("v5p:2x2x1")
prepare(CHIP)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from pyratok_jax.models.wan_vae.layers import (  # noqa: E402
    Downsample,
    ResidualBlock,
    Upsample,
)
from pyratok_jax.nn.causal_conv import CausalConv3d  # noqa: E402
from pyratok_jax.nn.halo import in_strips  # noqa: E402
from pyratok_jax.nn.lora import LoRAParam, add_lora  # noqa: E402
from pyratok_jax.nn.lowering import conv_lowering, padded_lanes  # noqa: E402
from pyratok_jax.pods.aot import EFFORTS, compile_into  # noqa: E402
from pyratok_jax.pods.hlo import HloProgram  # noqa: E402

FULL, HALF, QUARTER = (8, 17, 64, 512), (8, 17, 32, 256), (8, 9, 16, 128)
# How a layer is made, and its input; 96 channels are padded to 128.
LAYERS = {
    "residual_96": (lambda **s: ResidualBlock(96, 96, **s), (*FULL, 128)),
    "residual_192": (lambda **s: ResidualBlock(192, 192, **s), (*HALF, 192)),
    "residual_384": (lambda **s: ResidualBlock(384, 384, **s), (*QUARTER, 384)),
    "down_96": (lambda **s: Downsample(96, halves_time=False, **s), (*FULL, 128)),
    "down_192": (lambda **s: Downsample(192, halves_time=True, **s), (*HALF, 192)),
    "up_192": (lambda **s: Upsample(192, 96, doubles_time=False, **s), (*HALF, 192)),
    "up_384": (lambda **s: Upsample(384, 192, doubles_time=True, **s), (*QUARTER, 384)),
    "input": (lambda **s: CausalConv3d(3, 96, (3, 3, 3), **s), (*FULL, 3)),
    "output": (lambda **s: CausalConv3d(96, 3, (3, 3, 3), **s), (*FULL, 128)),
}
WHAT = ("forward", "input", "adapter")


def program(name: str, what: str):
    """The function to compile and the shapes of its arguments."""
    make, size = LAYERS[name]

    def build() -> nnx.Module:
        layer = make(rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
        if what == "adapter":
            add_lora(layer, 16, 32.0, rngs=nnx.Rngs(1))
        return layer

    graph, adapters, frozen = nnx.split(nnx.eval_shape(build), LoRAParam, ...)
    x = jax.ShapeDtypeStruct(size, jnp.bfloat16)

    def forward(adapters, frozen, x):
        with conv_lowering("tpu"), in_strips(8), padded_lanes():
            return nnx.merge(graph, adapters, frozen)(x)

    def backward(adapters, frozen, x, cotangent):
        return jax.vjp(lambda a, x: forward(a, frozen, x), adapters, x)[1](cotangent)

    if what == "forward":
        return forward, (adapters, frozen, x)
    return backward, (adapters, frozen, x, jax.eval_shape(forward, adapters, frozen, x))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("layers", nargs="*", help=f"of {', '.join(LAYERS)}; none: all")
    parser.add_argument("--what", default="forward,input", help=f"of {', '.join(WHAT)}")
    parser.add_argument("--effort", default="medium", choices=[e for e in EFFORTS if e != "memory"])
    parser.add_argument("--top", type=int, default=0, help="costliest operations to name")
    options = parser.parse_args()
    mesh = Mesh(np.array(describe(CHIP)[:1]), ("x",))
    here = NamedSharding(mesh, P())
    for name in options.layers or LAYERS:
        for what in options.what.split(","):
            function, arguments = program(name, what)
            arguments = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), arguments
            )
            with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
                lowered = jax.jit(function).lower(*arguments)
                compiled = HloProgram(compile_into(lowered, options.effort, Path(folder)).text)
            print(f"{name} {what}: {compiled.cycles / 1e6:.1f} M cycles", flush=True)
            for cost in compiled.costliest(options.top):
                print(
                    f"    {cost.cycles / 1e6:8.2f} M  {cost.count:.0f} x {cost.shape}  {cost.where}"
                )
    # Do not wait for the compiler's threads.
    os._exit(0)


if __name__ == "__main__":
    main()
