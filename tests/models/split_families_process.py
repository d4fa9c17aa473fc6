"""Run in a process with several virtual devices: every family, frames split against the whole."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pyratok_jax.models import video_vae
from pyratok_jax.models.cogvideox import config as cogvideox
from pyratok_jax.models.hunyuan_video import config as hunyuan_video
from pyratok_jax.models.mochi import config as mochi
from pyratok_jax.models.svd import config as svd
from pyratok_jax.models.vae_families import build_vae
from pyratok_jax.nn.partitioning import Split, over_devices

FAMILIES = {"cogvideox": cogvideox, "hunyuan_video": hunyuan_video, "mochi": mochi, "svd": svd}


def error(a, b):
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


def main(family: str, devices: int) -> None:
    mesh = Mesh(np.array(jax.devices()[:devices]), ("height",), axis_types=(AxisType.Auto,))
    vae = build_vae(FAMILIES[family].tiny(), rngs=nnx.Rngs(0))
    graph, state = nnx.split(vae)
    shape = (1, 1 + vae.config.frame_step, 8 * devices, 16, 3)
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)

    def both(state, video):
        model = nnx.merge(graph, state)
        encoded = video_vae.encode(model, video)
        return encoded, video_vae.decode(model, encoded.mean)

    whole = jax.jit(both)(state, video)
    rows = NamedSharding(mesh, P(None, None, "height"))
    placed = jax.device_put(video, rows)
    kept = jax.device_put(state, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh), over_devices(Split(height="height")):
        split = jax.jit(both)(kept, placed)
    worst = max(
        error(a, b) for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True)
    )
    # Sums over rows are in another order, and norms amplify the rounding.
    assert worst < 1e-4, worst
    print("equal")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
