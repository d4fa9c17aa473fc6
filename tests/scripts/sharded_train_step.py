"""Frames split by height under jit: the values and gradients of whole ones, and no frame gathered.

Run with 4 devices.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from pyratok_jax.losses.pixel import ssim_loss
from pyratok_jax.models import video_vae
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.nn import partitioning
from pyratok_jax.nn.lowering import conv_lowering
from pyratok_jax.nn.trace import Split
from pyratok_jax.pods.hlo import HloProgram
from pyratok_jax.training.distributed.sharding import (
    batch_spec,
    make_mesh,
    parameter_shardings,
    split_of,
)


def main() -> None:
    config = WanVAEConfig(
        base_dim=8, z_dim=2, dim_mult=(1, 1, 1, 2), num_res_blocks=1,
        latents_mean=(0.0,) * 2, latents_std=(1.0,) * 2,
    )  # fmt: skip
    graph, state = nnx.split(WanVAE(config, rngs=nnx.Rngs(0)))
    video = jax.random.uniform(jax.random.key(0), (2, 1, 32, 16, 3), minval=-1.0)

    def loss(state: nnx.State, video: jax.Array) -> jax.Array:
        model = nnx.merge(graph, state)
        encoded = video_vae.encode(model, video)
        stages = sum(jnp.mean(stage**2) for stage in encoded.stages)
        return ssim_loss(video, 0.5 * video + encoded.mean.mean()) + stages

    whole, wanted = jax.jit(jax.value_and_grad(loss))(state, video)
    mesh = make_mesh({"data": 1, "fsdp": 2, "spatial": 2, "tensor": 1, "slices": 1})
    assert split_of(2, mesh) == Split(("fsdp",), "spatial")

    def split(state: nnx.State, video: jax.Array) -> tuple[jax.Array, nnx.State]:
        with partitioning.over_devices(split_of(video.shape[0])):
            return jax.value_and_grad(loss)(state, video)

    with jax.set_mesh(mesh):
        placed = jax.device_put(state, parameter_shardings(state, mesh))
        pixels = jax.device_put(video, NamedSharding(mesh, batch_spec(video.shape, mesh)))
        compiled = jax.jit(split).lower(placed, pixels).compile()
        value, found = compiled(placed, pixels)
    assert abs(float(whole) - float(value)) < 1e-5, (whole, value)
    worst = jax.tree.map(
        lambda a, b: float(abs(a - jax.device_get(b)).max() / (abs(a).max() + 1e-6)), wanted, found
    )
    assert max(jax.tree.leaves(worst)) < 1e-3, worst
    program = HloProgram(compiled.as_text() or "")
    assert "collective-permute" in program.collectives()
    # One clip of this part of the mesh at the latent's resolution: nothing as large is gathered.
    gathered = [row for row in program.gathers() if row[2] >= 2 * 4 * 2 * 16 * 4]
    assert not gathered, gathered


if __name__ == "__main__":
    with conv_lowering("conv3d"):  # Fewer operations to compile.
        main()
