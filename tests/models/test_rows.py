"""Frames split by height over devices, under jit: the same values, and no frame is gathered."""

import os
import subprocess
import sys

SCRIPT = """
import jax, jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from pyratok_jax.losses.reconstruction import ssim_loss
from pyratok_jax.models import rows
from pyratok_jax.models.wan_vae.forms import conv_form
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.pods.hlo import Program
from pyratok_jax.training.sharding import batch_spec, make_mesh, parameter_shardings, split_of
config = WanVAEConfig(base_dim=8, z_dim=2, dim_mult=(1, 1, 1, 2), num_res_blocks=1,
                      latents_mean=(0.0,) * 2, latents_std=(1.0,) * 2)
vae = WanVAE(config, rngs=nnx.Rngs(0))
graph, state = nnx.split(vae)
video = jax.random.uniform(jax.random.key(0), (2, 1, 32, 16, 3), minval=-1.0)
conv_form("conv3d").__enter__()  # fewer operations to compile
def loss(state, video):
    model = nnx.merge(graph, state)
    encoded = rows.encode(model, video)
    stages = sum(jnp.mean(stage**2) for stage in encoded.stages)
    return ssim_loss(video, 0.5 * video + encoded.mean.mean()) + stages
whole, gradient = jax.jit(jax.value_and_grad(loss))(state, video)
mesh = make_mesh({"data": 1, "fsdp": 2, "spatial": 2, "tensor": 1, "slices": 1})
assert split_of(2, mesh) == rows.Split(("fsdp",), "spatial")
def split(state, video):
    with rows.over_devices(split_of(video.shape[0])):
        return jax.value_and_grad(loss)(state, video)
with jax.set_mesh(mesh):
    placed = jax.device_put(state, parameter_shardings(state, mesh))
    pixels = jax.device_put(video, NamedSharding(mesh, batch_spec(video.shape, mesh)))
    compiled = jax.jit(split).lower(placed, pixels).compile()
    value, got = compiled(placed, pixels)
assert abs(float(whole) - float(value)) < 1e-5, (whole, value)
worst = jax.tree.map(lambda a, b: float(abs(a - jax.device_get(b)).max() / (abs(a).max() + 1e-6)),
                     gradient, got)
assert max(jax.tree.leaves(worst)) < 1e-3, worst
program = Program(compiled.as_text())
assert "collective-permute" in program.collectives()
# One clip of this part of the mesh at the latent's resolution: nothing as large is put together.
gathered = [row for row in program.gathers() if row[2] >= 2 * 4 * 2 * 16 * 4]
assert not gathered, gathered
print("same")
"""


def test_split_frames_give_the_values_and_gradients_of_whole_ones():
    flags = "--xla_force_host_platform_device_count=4"
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.split()[-1] == "same"
