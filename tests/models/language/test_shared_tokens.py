"""Devices that share frames share the language model's tokens: same numbers, a part of the work."""

import subprocess
import sys

from tests.compiler_flags import quick_environment

# Clips over data; frames, and so tokens, over spatial.
SCRIPT = """
import re, sys
import jax, jax.numpy as jnp
from flax import nnx
from pyratok_jax.losses.autoregressive import autoregressive_loss
from pyratok_jax.nn import partitioning
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.config import tiny
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.training.distributed.sharding import make_mesh, parameter_shardings, split_of
head = sys.argv[1]
model = LanguageModel(tiny(mrope_section=(1, 1, 2)), rngs=nnx.Rngs(0), remat="layers")
alignment = Alignment(4, 2, 32, rngs=nnx.Rngs(1), head=head)
kernel = alignment.head.kernel
kernel[...] = jax.random.normal(jax.random.key(4), kernel.shape)
codes = tuple(jax.random.normal(jax.random.key(i), (2, *grid, 4))
              for i, grid in enumerate([(5, 1, 1), (9, 2, 2)]))
ids = jax.random.randint(jax.random.key(5), (2, 8), 0, 96)
mask = jnp.arange(8) < jnp.array([8, 3])[:, None]
(one, weights), (two, frozen) = nnx.split(alignment), nnx.split(model)
def loss(weights, codes, frozen):
    return autoregressive_loss(nnx.merge(one, weights), nnx.merge(two, frozen), codes, (ids, mask))
def run(*arguments):
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(*arguments)
whole = jax.jit(run)(weights, codes, frozen)
mesh = make_mesh({"data": 2, "fsdp": 1, "spatial": 4, "tensor": 1, "slices": 1})
assert split_of(2, mesh) == partitioning.Split(("data",), "spatial")
def split(*arguments):
    with partitioning.over_devices(split_of(2)):
        return run(*arguments)
with jax.set_mesh(mesh):
    placed = jax.device_put((weights, codes, frozen), (parameter_shardings(weights, mesh), None,
                                                       parameter_shardings(frozen, mesh)))
    compiled = jax.jit(split).lower(*placed).compile()
    got = compiled(*placed)
def near(a, b):
    return float(jnp.abs(a - jax.device_get(b)).max()) <= 1e-5 * float(jnp.abs(a).max()) + 1e-7
same = jax.tree.map(near, whole, got)
assert all(jax.tree.leaves(same)), same
# 42 items are filled up to 64; of a clip each device has 16 in the MLP (48 wide) and in the head.
text = compiled.as_text()
shapes = set(re.findall(r"f32\\[([\\d,]+)\\]", text))
outputs = kernel.shape[1]
for width in (48, outputs):
    assert {f"1,16,{width}", f"16,{width}"} & shapes, (width, shapes)
    assert not {f"{lead}{n},{width}" for n in (42, 64) for lead in ("", "1,", "2,")} & shapes
print("same")
"""


def _run(head):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, head],
        env=quick_environment(devices=8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "same" in done.stdout, done.stderr[-3000:]


def test_lookup_free_head():
    _run("lookup_free")


def test_softmax_head():
    _run("softmax")
