"""Frames split by height over devices, under jit: the same values, and no frame is gathered."""

import subprocess
import sys

from tests.compiler_flags import quick_environment

SCRIPT = """
import jax, jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from pyratok_jax.losses.pixel import ssim_loss
from pyratok_jax.models import video_vae
from pyratok_jax.nn import partitioning
from pyratok_jax.nn.lowering import conv_form
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.pods.hlo import HloProgram
from pyratok_jax.training.distributed.sharding import (
    batch_spec, make_mesh, parameter_shardings, split_of)
config = WanVAEConfig(base_dim=8, z_dim=2, dim_mult=(1, 1, 1, 2), num_res_blocks=1,
                      latents_mean=(0.0,) * 2, latents_std=(1.0,) * 2)
vae = WanVAE(config, rngs=nnx.Rngs(0))
graph, state = nnx.split(vae)
video = jax.random.uniform(jax.random.key(0), (2, 1, 32, 16, 3), minval=-1.0)
conv_form("conv3d").__enter__()  # fewer operations to compile
def loss(state, video):
    model = nnx.merge(graph, state)
    encoded = video_vae.encode(model, video)
    stages = sum(jnp.mean(stage**2) for stage in encoded.stages)
    return ssim_loss(video, 0.5 * video + encoded.mean.mean()) + stages
whole, gradient = jax.jit(jax.value_and_grad(loss))(state, video)
mesh = make_mesh({"data": 1, "fsdp": 2, "spatial": 2, "tensor": 1, "slices": 1})
assert split_of(2, mesh) == partitioning.Split(("fsdp",), "spatial")
def split(state, video):
    with partitioning.over_devices(split_of(video.shape[0])):
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
program = HloProgram(compiled.as_text())
assert "collective-permute" in program.collectives()
# One clip of this part of the mesh at the latent's resolution: nothing as large is put together.
gathered = [row for row in program.gathers() if row[2] >= 2 * 4 * 2 * 16 * 4]
assert not gathered, gathered
print("same")
"""

# Two clips over data, heights over spatial, and an axis over which neither lies but kernels do.
NETWORKS = """
import jax, jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from pyratok_jax.models import video_vae
from pyratok_jax.nn import partitioning
from pyratok_jax.models.pyratok.lapq import LateralConnection
from pyratok_jax.models.perceptual.lpips import LPIPS
from pyratok_jax.models.pyratok.synthesis import Synthesis
from pyratok_jax.nn.lowering import conv_form
from pyratok_jax.training.distributed import sharding
from pyratok_jax.training.distributed.sharding import (
    batch_spec, make_mesh, parameter_shardings, split_of)
sharding.MIN_SHARDED_SIZE = 16
synthesis = Synthesis((4, 16), (4, 8), 4, 4, 8, rngs=nnx.Rngs(0))
synthesis.smooth_out.kernel[...] = synthesis.smooth_in.kernel[...].swapaxes(-1, -2)
lateral = LateralConnection(4, (4, 8), (4, 16), 8, rngs=nnx.Rngs(1))
video, target = jax.random.uniform(jax.random.key(0), (2, 2, 1, 64, 32, 3), minval=-1.0)
images = lambda x: x.reshape(-1, *x.shape[2:])
def distance(network, x):
    return jnp.mean(partitioning.with_whole_kernels(network)(images(x), images(target)))
def in_tpu_form(layer, x):
    with conv_form("tpu"):
        return jnp.sum(jnp.sin(partitioning.convolve(layer, x)))
cases = {
    "synthesis": (synthesis, (2, 1, 4, 4, 4), lambda net, x: jnp.sum(jnp.sin(net(x)))),
    # A grid with three rows, which do not split.
    "odd": (synthesis, (2, 1, 3, 4, 4), lambda net, x: jnp.sum(jnp.sin(net(x)))),
    # With its derivative written out, as on TPUs.
    "tpu": (synthesis.smooth_in, (2, 2, 8, 4, 4), in_tpu_form),
    "lateral": (lateral, (2, 2, 8, 8, 4), lambda net, x: jnp.sum(jnp.sin(net(x)))),
    "lpips": (LPIPS("alex", rngs=nnx.Rngs(2)), (2, 1, 64, 32, 3), distance),
}
mesh = make_mesh({"data": 2, "fsdp": 1, "spatial": 2, "tensor": 2, "slices": 1})
for name, (network, shape, loss) in cases.items():
    graph, state = nnx.split(network)
    x = jax.random.normal(jax.random.key(1), shape)
    run = jax.value_and_grad(lambda s, x: loss(nnx.merge(graph, s), x), argnums=(0, 1))
    def split(state, x):
        with partitioning.over_devices(split_of(2)):
            return run(state, x)
    whole, wanted = jax.jit(run)(state, x)
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, batch_spec(shape if name != "odd" else shape[:1], mesh))
        value, found = jax.jit(split)(jax.device_put(state, parameter_shardings(state, mesh)),
                                      jax.device_put(x, place))
    assert abs(float(value / whole) - 1) < 1e-5, (name, value, whole)
    if name == "lpips":  # it is frozen
        wanted, found = wanted[1], found[1]
    worst = jax.tree.map(lambda a, b: float(abs(a - jax.device_get(b)).max() / abs(a).max()),
                         wanted, found)
    assert max(jax.tree.leaves(worst)) < 1e-5, (name, worst)
print("same")
"""


def run(script, devices):
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=600,
        env=quick_environment(devices),
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.split()[-1] == "same"


def test_split_frames_give_the_values_and_gradients_of_whole_ones():
    run(SCRIPT, devices=4)


def test_convolutions_of_split_frames_are_right_beside_an_axis_that_splits_only_weights():
    """The compiler's partitioner would double the gradients of kernels here."""
    run(NETWORKS, devices=8)
