"""A VAE compiled ahead of time for one TPU chip: estimated cycles and memory. No TPU is needed.

    python benchmarks/vae_tpu_cycles.py encode|decode|gradient|adapters|decoder [--model mochi]
        [--form tpu|conv3d] [--frames 17] [--side 256] [--clips 1] [--chip v5p] [--effort full]
        [--remat none|stages|all|convs|auto] [--of video|parameters] [--top 12]

`adapters` and `decoder` are the halves of the VAE as stage 1 trains them, over float32 parameters:
gradients of rank-16 adapters of the encoder, and of the latent through the decoder. Needs the
`libtpu` package. Prints JSON: the compiler's sum of estimated cycles over all operations, its
costliest operations, its memory analysis, flops, and what compiling took.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from pyratok_jax.nn.settings import POLICIES
from pyratok_jax.pods.topology import GIGABYTE, describe, parse_slice, prepare

# The smallest slice of each generation that the compiler describes.
SLICES = {"v5p": "v5p:2x2x1", "v5e": "v5e:2x4", "v6e": "v6e:2x4"}


def program(options: argparse.Namespace):
    """The function to compile, and the shapes of its arguments."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from pyratok_jax.models.sizes import VAES
    from pyratok_jax.models.video_vae import build_vae
    from pyratok_jax.nn.lora import LoRAParam, add_lora

    config, trains = VAES[options.model], options.what in ("adapters", "decoder")
    width = jnp.float32 if trains else jnp.bfloat16

    def make() -> nnx.Module:
        vae = build_vae(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=width,
                        remat=options.remat)  # fmt: skip
        if options.what == "adapters":
            add_lora(vae.encoder, 16, 32.0, rngs=nnx.Rngs(1))
        return vae

    chosen = LoRAParam if options.what == "adapters" else nnx.Param
    graph, state, frozen = nnx.split(nnx.eval_shape(make), chosen, ...)
    frames, side = options.frames, options.side
    video = (options.clips, frames, side, side, 3)
    sides = (side // config.spatial_factor,) * 2
    latent = (options.clips, (frames - 1) // config.temporal_factor + 1, *sides, config.z_dim)

    def encode(state, frozen, x):
        return nnx.merge(graph, state, frozen).encode(x)

    def decode(state, frozen, z):
        return nnx.merge(graph, state, frozen).decode(z)

    def square(x):
        return jnp.mean(x.astype(jnp.float32) ** 2)

    def loss(state, frozen, x):
        y = decode(state, frozen, encode(state, frozen, x).mean)
        return square(y.astype(jnp.float32) - x.astype(jnp.float32))

    def of_features(state, frozen, x):
        encoded = encode(state, frozen, x)
        return sum(map(square, (encoded.mean, *encoded.stages)))

    def of_video(state, frozen, z):
        return square(decode(state, frozen, z))

    run = {
        "encode": encode,
        "decode": decode,
        "gradient": jax.grad(loss, argnums=0 if options.of == "parameters" else 2),
        "adapters": jax.grad(of_features),
        "decoder": jax.grad(of_video, argnums=2),
    }[options.what]
    # Mochi's encoder needs float32 pixels; adapters are trained on what is read from videos.
    shape, dtype = video, jnp.float32 if options.what == "adapters" else jnp.bfloat16
    if config.family == "mochi":
        dtype = jnp.float32
    if options.what in ("decode", "decoder"):
        shape, dtype = latent, jnp.bfloat16
    return run, (state, frozen), jax.ShapeDtypeStruct(shape, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["encode", "decode", "gradient", "adapters", "decoder"])
    parser.add_argument("--model", default="wan2.1", help="sizes, as config.model.vae")
    parser.add_argument("--form", default="tpu", choices=["tpu", "conv3d", "frames"])
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--effort", default="full", choices=["full", "medium", "low"])
    parser.add_argument("--chip", default="v5p", choices=list(SLICES))
    parser.add_argument("--remat", default="none", choices=POLICIES)
    parser.add_argument("--of", default="video", choices=["video", "parameters"])
    parser.add_argument("--top", type=int, default=12)
    options = parser.parse_args()
    where = parse_slice(SLICES[options.chip])
    prepare(where)

    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from pyratok_jax.nn.lowering import conv_lowering
    from pyratok_jax.pods.aot import compile_into

    here = NamedSharding(Mesh(np.array(describe(where)[:1]), ("x",)), PartitionSpec())
    run, states, x = program(options)
    states, x = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), (states, x)
    )
    with conv_lowering(options.form), tempfile.TemporaryDirectory() as folder:
        lowered = jax.jit(run).lower(*states, x)
        lines = lowered.as_text().count("\n")
        answer = compile_into(lowered, options.effort, Path(folder))
    compiled, flops = answer.program(where.chip), answer.costs.get("flops", 0.0)
    report = {
        **vars(options),
        "input": list(x.shape),
        "lines_to_compile": lines,
        "seconds_of_processor": round(time.process_time()),
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
