"""Wan VAE compiled ahead of time for one TPU chip: estimated cycles and memory. No TPU is needed.

    python benchmarks/vae_tpu_cycles.py encode|decode|gradient [--form tpu|conv3d] [--frames 17]
        [--side 256] [--chip v5p] [--remat none|stages|all] [--of video|parameters] [--top 12]

Needs the `libtpu` package. Prints JSON: the compiler's sum of estimated cycles over all
operations, its costliest operations, its memory analysis, and flops.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from pyratok_jax.pods.topology import GIGABYTE, describe, parse_slice, prepare

# The smallest slice of each generation that the compiler describes.
SLICES = {"v5p": "v5p:2x2x1", "v5e": "v5e:2x4", "v6e": "v6e:2x4"}


def program(options: argparse.Namespace):
    """The function to compile, and the shapes of its arguments."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from pyratok_jax.models.wan_vae.config import WAN21, WAN22
    from pyratok_jax.models.wan_vae.model import WanVAE

    config = {"wan21": WAN21, "wan22": WAN22}[options.model]
    vae = nnx.eval_shape(
        lambda: WanVAE(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16,
                       remat=options.remat)
    )  # fmt: skip
    graph, state = nnx.split(vae)
    frames, side = options.frames, options.side
    video = (1, frames, side, side, 3)
    latent = (1, (frames - 1) // 4 + 1, *(side // config.spatial_factor,) * 2, config.z_dim)

    def encode(state, x):
        return nnx.merge(graph, state).encode(x)

    def decode(state, z):
        return nnx.merge(graph, state).decode(z)

    def loss(state, x):
        model = nnx.merge(graph, state)
        y = model.decode(model.encode(x).mean)
        return jnp.mean((y.astype(jnp.float32) - x.astype(jnp.float32)) ** 2)

    gradient = jax.grad(loss, argnums=0 if options.of == "parameters" else 1)
    run = {"encode": encode, "decode": decode, "gradient": gradient}[options.what]
    return run, state, latent if options.what == "decode" else video


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["encode", "decode", "gradient"])
    parser.add_argument("--model", default="wan21", choices=["wan21", "wan22"])
    parser.add_argument("--form", default="tpu", choices=["tpu", "conv3d", "shifts"])
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--chip", default="v5p", choices=list(SLICES))
    parser.add_argument("--remat", default="none", choices=["none", "stages", "all"])
    parser.add_argument("--of", default="video", choices=["video", "parameters"])
    parser.add_argument("--top", type=int, default=12)
    options = parser.parse_args()
    where = parse_slice(SLICES[options.chip])
    prepare(where)

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from pyratok_jax.nn.lowering import conv_lowering
    from pyratok_jax.pods.aot import compile_into
    from pyratok_jax.pods.hlo import HloProgram

    here = NamedSharding(Mesh(np.array(describe(where)[:1]), ("x",)), PartitionSpec())
    run, state, shape = program(options)
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), state)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=here)
    with conv_lowering(options.form), tempfile.TemporaryDirectory() as folder:
        answer = compile_into(jax.jit(run).lower(state, x), "full", Path(folder))
    compiled, flops = HloProgram(answer.text), answer.costs.get("flops", 0.0)
    report = {
        **vars(options),
        "input": list(shape),
        "estimated_cycles": round(compiled.cycles),
        "flops": flops,
        "cycles_at_peak": round(flops / where.chip.peak * where.chip.clock),
        "temporary_gigabytes": answer.memory and round(answer.memory.temporaries / GIGABYTE, 3),
        "error": answer.error,
        "costliest": [
            {"operation": f"{cost.shape} {cost.where}", "count": cost.count, "cycles": cost.cycles}
            for cost in compiled.costliest(options.top)
        ],
    }
    print(json.dumps(report, indent=1), flush=True)
    # Do not wait for the compiler's threads.
    os._exit(0)


if __name__ == "__main__":
    main()
