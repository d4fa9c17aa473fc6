"""Wan 2.1 VAE: errors of half precision for encode and decode, random weights.

    python benchmarks/vae_errors.py [--frames 5] [--height 96] [--width 128] [--base-dim 96]

Prints JSON with relative errors ||y - y0|| / ||y0|| against the whole frame in float32:
`bfloat16` activations over the same float32 weights, with the lowering of the CPU and that of TPUs.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyratok_jax.models.wan_vae.config import WAN21, WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.nn.lowering import conv_lowering


def make(config: WanVAEConfig, dtype) -> WanVAE:
    """The same weights for every dtype; biases are not zero."""
    vae = WanVAE(config, rngs=nnx.Rngs(0), dtype=dtype)
    graph, state = nnx.split(vae)
    random = np.random.default_rng(1)

    def biased(path, value):
        if "bias" not in jax.tree_util.keystr(path):
            return value
        return jnp.asarray(0.1 * random.standard_normal(value.shape), value.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(biased, state))


def clip(frames: int, height: int, width: int) -> jax.Array:
    """Moving waves and some noise in [-1, 1]."""
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [np.sin(x / a + y / b + t / c) for a, b, c in ((9, 7, 5), (23, 31, 3), (5, 40, 9))]
    noise = np.random.default_rng(0).uniform(-0.2, 0.2, (frames, height, width, 3))
    return jnp.asarray(0.8 * np.stack(waves, axis=-1) + noise, jnp.float32)[None]


def error(found: jax.Array, whole: jax.Array) -> float:
    value, expected = np.asarray(found, np.float32), np.asarray(whole, np.float32)
    return float(f"{np.linalg.norm(value - expected) / np.linalg.norm(expected):.2e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, size in {"frames": 5, "height": 96, "width": 128, "base-dim": 96}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    options = parser.parse_args()
    config = dataclasses.replace(WAN21, base_dim=options.base_dim)
    video = clip(options.frames, options.height, options.width)

    def run(dtype, lowering: str, z: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        graph, state = nnx.split(make(config, dtype))
        with conv_lowering(lowering):
            mean = jax.jit(lambda s, v: nnx.merge(graph, s).encode(v).mean)(state, video)
            latent = mean if z is None else z
            decoded = jax.jit(lambda s, z: nnx.merge(graph, s).decode(z))(state, latent)
        return mean, decoded

    mean, decoded = run(jnp.float32, "frames", None)
    report: dict = {
        "clip": list(video.shape),
        "base_dim": options.base_dim,
        "half": {},
    }
    for lowering in ("frames", "tpu"):
        half_mean, half_decoded = run(jnp.bfloat16, lowering, mean)
        report["half"][lowering] = {
            "encode": error(half_mean, mean), "decode": error(half_decoded, decoded)
        }  # fmt: skip
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
