"""Wan VAE compiled ahead of time for one TPU chip: estimated cycles and memory. No TPU is needed.

    python benchmarks/vae_tpu_cycles.py encode|decode|gradient [--form tpu|conv3d] [--frames 17]
        [--side 256] [--chip v5p] [--remat none|stages|all] [--of video|parameters] [--top 12]

Needs the `libtpu` package. Prints JSON: the compiler's sum of estimated cycles over all
operations, its costliest operations, its memory analysis, and flops.
"""

import argparse
import json
import os
import re
from collections import defaultdict

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from pyratok_jax.models.wan_vae.config import WAN21, WAN22  # noqa: E402
from pyratok_jax.models.wan_vae.model import WanVAE  # noqa: E402
from pyratok_jax.nn.lowering import FORMS, conv_form

CHIPS = {
    "v5p": ("v5p-8", "v5p:2x2x1"),
    "v5e": ("v5litepod-8", "v5e:2x4"),
    "v6e": ("v6e-8", "v6e:2x4"),
}
CLOCK_HZ = {"v5p": 1.75e9, "v5e": 1.5e9, "v6e": 1.75e9}
PEAK_FLOPS = {"v5p": 459e12, "v5e": 197e12, "v6e": 918e12}


def program(options: argparse.Namespace):
    """The function to compile, and the shapes of its arguments."""
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


def costs(text: str, top: int) -> tuple[int, list[dict]]:
    """Sum of the estimated cycles in an optimised program, and its costliest operations."""
    total, entries = 0, []
    groups: dict[str, list[int]] = defaultdict(list)
    for line in text.splitlines():
        found = re.search(r'"estimated_cycles":"?(\d+)', line)
        if not found:
            continue
        cycles = int(found[1])
        total += cycles
        shape = re.search(r"= \(?(\w+\[[\d,]*\])", line)
        name = re.search(r'op_name="([^"]*)"', line)
        where = name[1].split("/", 1)[-1][-60:] if name else line.split("=")[0].strip()[-40:]
        groups[f"{shape[1] if shape else '?'} {where}"].append(cycles)
    for key, values in groups.items():
        entries.append({"operation": key, "count": len(values), "cycles": sum(values)})
    return total, sorted(entries, key=lambda e: -e["cycles"])[:top]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["encode", "decode", "gradient"])
    parser.add_argument("--model", default="wan21", choices=["wan21", "wan22"])
    parser.add_argument("--form", default="tpu", choices=FORMS)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--chip", default="v5p", choices=list(CHIPS))
    parser.add_argument("--remat", default="none", choices=["none", "stages", "all"])
    parser.add_argument("--of", default="video", choices=["video", "parameters"])
    parser.add_argument("--top", type=int, default=12)
    options = parser.parse_args()
    os.environ["TPU_ACCELERATOR_TYPE"], topology = CHIPS[options.chip]
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    place = NamedSharding(Mesh(np.array(devices[:1]), ("x",)), P())
    run, state, shape = program(options)
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), state)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
    with conv_form(options.form):
        compiled = jax.jit(run).lower(state, x).compile()
    total, top = costs(compiled.as_text(), options.top)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    print(json.dumps({
        **vars(options), "input": list(shape), "estimated_cycles": total,
        "flops": cost.get("flops"),
        "cycles_at_peak": round(cost.get("flops", 0) / PEAK_FLOPS[options.chip]
                                * CLOCK_HZ[options.chip]),
        "temporary_gigabytes": round(memory.temp_size_in_bytes / 1e9, 3),
        "costliest": top,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
