"""The autoregressive loss alone, compiled for TPUs: estimated cycles forward and backward.

    python benchmarks/language_cycles.py [--topology v5p:2x2x1] [--clips 2] [--remat layers]
        [--fsdp 1 --spatial 1] [--effort full] [--top 10]

Qwen2.5-VL-3B with frozen bfloat16 weights reads the tokens of a 17x512x512 clip within the recipe's
budget, after the keys and values of 128 text tokens; gradients are those of the codes and the
alignment. The mesh takes the first fsdp x spatial chips; `--clips` over all of them: too few for
each chip to have one split the sequence over spatial. MFU counts neither recomputation nor padding.
No TPU is needed, but the package libtpu. Two to five minutes on one core.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from pyratok_jax.pods.topology import GIBIBYTE, describe, parse_slice, prepare

LEVELS = ((9, 7, 6), (5, 14, 12), (3, 14, 12), (3, 28, 24))
BITS, TEXT = 16, 128


def program(remat: str, clips: int, layers: int, **settings):
    """The function to compile, and its arguments: alignment and model, codes, the text's cache."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from pyratok_jax.losses.autoregressive import autoregressive_loss
    from pyratok_jax.models.alignment import Alignment
    from pyratok_jax.models.language.model import LanguageModel
    from pyratok_jax.models.sizes import LANGUAGE_MODELS

    config = LANGUAGE_MODELS["qwen2.5-vl-3b"]

    def build():
        rngs, half = nnx.Rngs(0), jnp.bfloat16
        model = LanguageModel(config, rngs=rngs, dtype=half, param_dtype=half, remat=remat)
        return Alignment(BITS, len(LEVELS), config.width, rngs=rngs), model

    (alignment_graph, alignment), (graph, model) = map(nnx.split, nnx.eval_shape(build))
    codes = tuple(jax.ShapeDtypeStruct((clips, *grid, BITS), jnp.float32) for grid in LEVELS)
    ids = jax.ShapeDtypeStruct((clips, TEXT), jnp.int32)
    mask = jax.ShapeDtypeStruct((clips, TEXT), jnp.bool_)
    cache = jax.eval_shape(lambda m, i, k: nnx.merge(graph, m).read(i, k)[1], model, ids, mask)

    def run(alignment, model, codes, cache):
        def loss(alignment, codes):
            return autoregressive_loss(
                nnx.merge(alignment_graph, alignment),
                nnx.merge(graph, model),
                codes,
                cache,
                layers=layers or None,
                **settings,
            )

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(alignment, codes)

    return run, (alignment, model, codes, cache)


def place(arguments, mesh):
    """The arguments with the shardings of a training."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from pyratok_jax.training.distributed.sharding import parameter_shardings, split_of

    *modules, codes, cache = arguments
    clips = split_of(codes[0].shape[0], mesh).clips or None

    def shardings(x, axis):
        lead = [None] * axis
        spec = PartitionSpec(*lead, clips) if x.ndim > axis else PartitionSpec()
        return NamedSharding(mesh, spec)

    by_row = jax.tree.map(lambda x: shardings(x, 0), (codes, cache))
    stacked = by_row[1]._replace(keys=shardings(cache.keys, 1), values=shardings(cache.values, 1))
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        arguments,
        (*(parameter_shardings(module, mesh) for module in modules), by_row[0], stacked),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--topology", default="v5p:2x2x1", help="chips, at least as many as used")
    parser.add_argument("--clips", type=int, default=2, help="over all chips")
    parser.add_argument("--layers", type=int, default=0, help="of the language model; 0: all")
    parser.add_argument("--remat", default="layers", help="what the backward pass keeps")
    parser.add_argument("--fsdp", type=int, default=1, help="chips over which weights are sharded")
    parser.add_argument("--spatial", type=int, default=1, help="chips that share a large clip")
    parser.add_argument("--effort", default="full", choices=["full", "medium", "low"])
    parser.add_argument("--top", type=int, default=0, help="costliest operations to name")
    parser.add_argument("--hlo", default="", help="where to keep the compiled program")
    options = parser.parse_args()
    where = parse_slice(options.topology)
    prepare(where)

    import jax

    from pyratok_jax.nn.lowering import conv_lowering
    from pyratok_jax.nn.partitioning import over_devices
    from pyratok_jax.pods.aot import compile_into
    from pyratok_jax.training.distributed.sharding import make_mesh, split_of
    from pyratok_jax.training.loop.flops import traced_flops

    count = options.fsdp * options.spatial
    sizes = {"data": 1, "fsdp": options.fsdp, "spatial": options.spatial, "tensor": 1, "slices": 1}
    mesh = make_mesh(sizes, describe(where)[:count])
    plain, shapes = program("none", options.clips, options.layers)
    flops = traced_flops(plain, *shapes) / count
    run, arguments = program(options.remat, options.clips, options.layers)
    with (
        jax.set_mesh(mesh),
        conv_lowering("tpu"),
        over_devices(split_of(options.clips, mesh)),
        tempfile.TemporaryDirectory() as folder,
    ):
        lowered = jax.jit(run).lower(*place(arguments, mesh))
        answer = compile_into(lowered, options.effort, Path(folder))
    if options.hlo:
        Path(options.hlo).write_text(answer.text)
    compiled = answer.program(where.chip)
    seconds = compiled.cycles / where.chip.clock
    memory = answer.memory
    report = {
        "settings": vars(options),
        "model_tflops_per_chip": round(flops / 1e12, 2),
        "million_cycles": round(compiled.cycles / 1e6, 1),
        "seconds": round(seconds, 4),
        "mfu": round(flops / (seconds * where.chip.peak), 4) if seconds else None,
        "gigabytes": round(memory.used / GIBIBYTE, 2) if memory else None,
        "collective_gigabytes": {
            kind: round(one.bytes / 1e9, 3) for kind, one in compiled.collectives().items()
        },
        "error": answer.error,
        "costliest": [
            f"{cost.cycles / 1e6:.2f} M, {cost.count:.0f} x {cost.shape} {cost.where}"
            for cost in compiled.costliest(options.top)
        ],
    }
    print(json.dumps(report, indent=1), flush=True)
    # Do not wait for the compiler's threads.
    os._exit(0)


if __name__ == "__main__":
    main()
