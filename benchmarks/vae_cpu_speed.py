"""Wan 2.1 VAE on the CPU, float32: encode, decode and gradients against diffusers' torch code.

    python benchmarks/vae_cpu_speed.py
    python benchmarks/vae_cpu_speed.py --base-dim 24 --clips 4 --frames 9 --side 64

The first is the published size, the second about that of the demo's backbone and its batches. Both
sides run in one process on the same random weights and clips, in turns; the fastest turn counts.
Gradients are those of the squared error of the rebuilt video with respect to it and to all
weights; what is compared is the video's. Prints JSON with seconds, their ratio and the relative
difference of the results.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from diffusers import AutoencoderKLWan
from flax import nnx

from pyratok_jax.checkpoints.conversion import load_arrays
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.partition import build_module
from pyratok_jax.models.wan_vae.config import WAN21
from pyratok_jax.models.wan_vae.model import WanVAE
from weights_conversion.networks.wan_vae import make_plan
from weights_conversion.networks.wan_vae_published import diffusers_config


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def compare(ours: Callable, theirs: Callable, repeats: int) -> dict[str, float]:
    first = ours()
    mine, other = [], []
    for _ in range(repeats):
        mine.append(timed(ours)[0])
        seconds, expected = timed(theirs)
        other.append(seconds)
    error = np.linalg.norm(first - expected) / np.linalg.norm(expected)
    return {
        "ours_seconds": round(min(mine), 3),
        "torch_seconds": round(min(other), 3),
        "ours_over_torch": round(min(mine) / min(other), 3),
        "relative_difference": float(f"{error:.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--base-dim", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--what", default="encode,decode,gradient", help="separated by commas")
    options = parser.parse_args()
    config = dataclasses.replace(WAN21, base_dim=options.base_dim)
    torch.manual_seed(0)
    model = AutoencoderKLWan(**diffusers_config(config)).eval()
    plan = make_plan(
        sources_from_arrays({k: v.numpy() for k, v in model.state_dict().items()}), config
    )
    vae = build_module(lambda: WanVAE(config, rngs=nnx.Rngs(0)), load_arrays(plan))
    shape = (options.clips, options.frames, options.side, options.side, 3)
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    given = torch.from_numpy(video).permute(0, 4, 1, 2, 3).contiguous()
    graph, state = nnx.split(vae)
    encode = jax.jit(lambda s, x: nnx.merge(graph, s).encode(x).mean)
    decode = jax.jit(lambda s, z: nnx.merge(graph, s).decode(z).clip(-1, 1))

    def torch_encode() -> np.ndarray:
        with torch.no_grad():
            return model.encode(given).latent_dist.mean.permute(0, 2, 3, 4, 1).numpy()

    z = torch_encode()
    latent = torch.from_numpy(z).permute(0, 4, 1, 2, 3).contiguous()

    def torch_decode() -> np.ndarray:
        with torch.no_grad():
            return model.decode(latent).sample.permute(0, 2, 3, 4, 1).numpy()

    def error(state: nnx.State, clip: jax.Array) -> jax.Array:
        system = nnx.merge(graph, state)
        rebuilt = system.decode(system.encode(clip).mean).clip(-1, 1)  # as diffusers does
        return ((rebuilt - clip) ** 2).sum()

    gradient = jax.jit(jax.grad(error, argnums=(0, 1)))

    def torch_gradient() -> np.ndarray:
        model.zero_grad()
        clip = given.clone().requires_grad_()
        rebuilt = model.decode(model.encode(clip).latent_dist.mean).sample
        ((rebuilt - clip) ** 2).sum().backward()
        return clip.grad.permute(0, 2, 3, 4, 1).numpy()

    runs: dict[str, tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]] = {
        "encode": (lambda: np.asarray(encode(state, video)), torch_encode),
        "decode": (lambda: np.asarray(decode(state, z)), torch_decode),
        "gradient": (
            lambda: np.asarray(jax.block_until_ready(gradient(state, video))[1]), torch_gradient,
        ),
    }  # fmt: skip
    facts = {
        "clips": list(shape), "base_dim": options.base_dim, "threads": torch.get_num_threads()
    }  # fmt: skip
    found = {name: compare(*runs[name], options.repeats) for name in options.what.split(",")}
    print(json.dumps(facts | found, indent=1))


if __name__ == "__main__":
    main()
