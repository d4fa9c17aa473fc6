"""A process of two virtual devices: a family's VAE on frames split by height, and on whole frames.

Run as `split_families_process.py FAMILY DEVICES DTYPE`. Encoder and decoder are compared apart,
from equal inputs, because a decoder of random weights amplifies differences of its latent. In
float64 only a wrong program differs by more than rounding; in float32, sums over rows in another
order do.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pyratok_jax.models import cogvideox, hunyuan_video, mochi, svd, video_vae
from pyratok_jax.models.video_vae import build_vae
from pyratok_jax.nn import frame_attention
from pyratok_jax.nn.partitioning import Split, over_devices

FAMILIES = {"cogvideox": cogvideox, "hunyuan_video": hunyuan_video, "mochi": mochi, "svd": svd}
# Attention over time stays in float32, which JAX's own softmax is.
LIMITS = {"float32": 1e-5, "float64": 1e-7}


def error(a, b):
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


def main(family: str, devices: int, dtype: str) -> None:
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
        frame_attention.WHOLE = 0  # The blockwise softmax is as wide as its input.
    mesh = Mesh(np.array(jax.devices()[:devices]), ("height",), axis_types=(AxisType.Auto,))
    config = FAMILIES[family].tiny()
    vae = build_vae(config, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=dtype)
    graph, state = nnx.split(vae)
    rng = np.random.default_rng(0)
    frames = 1 + config.frame_step
    video = jnp.asarray(rng.uniform(-1, 1, (1, frames, 8 * devices, 16, 3)), dtype)
    latents = 1 + config.frame_step // config.temporal_factor
    z = jnp.asarray(rng.normal(size=(1, latents, devices, 2, config.z_dim)), dtype)

    def both(state, video, z):
        model = nnx.merge(graph, state)
        return video_vae.encode(model, video), video_vae.decode(model, z)

    whole = jax.jit(both)(state, video, z)
    rows = NamedSharding(mesh, P(None, None, "height"))
    placed = jax.device_put((video, z), rows)
    kept = jax.device_put(state, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh), over_devices(Split(height="height")):
        split = jax.jit(both)(kept, *placed)
    pairs = zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True)
    errors = [error(a, b) for a, b in pairs]
    print("relative errors", *(f"{each:.1e}" for each in errors), file=sys.stderr)
    assert max(errors) < LIMITS[dtype], errors
    print("equal")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
