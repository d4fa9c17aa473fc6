"""The autoregressive loss with clips over `data` and tokens over `spatial`, against one device.

Arguments: the heads to test. Run with 8 devices.
"""

import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pyratok_jax.losses.autoregressive import autoregressive_loss
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.config import tiny
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.nn import partitioning
from pyratok_jax.nn.trace import Split
from pyratok_jax.training.distributed.sharding import make_mesh, parameter_shardings, split_of


def near(a: jax.Array, b: jax.Array) -> bool:
    difference = jnp.abs(a - jax.device_get(b)).max()
    return float(difference) <= 1e-5 * float(jnp.abs(a).max()) + 1e-7


def check(head: str, model: LanguageModel) -> None:
    alignment = Alignment(4, 2, 32, rngs=nnx.Rngs(1), head=head)
    kernel = alignment.head.kernel
    kernel[...] = jax.random.normal(jax.random.key(4), kernel.shape)
    grids = [(5, 1, 1), (9, 2, 2)]
    codes = tuple(
        jax.random.normal(jax.random.key(i), (2, *grid, 4)) for i, grid in enumerate(grids)
    )
    ids = jax.random.randint(jax.random.key(5), (2, 8), 0, 96)
    mask = jnp.arange(8) < jnp.array([8, 3])[:, None]
    (one, weights), (two, frozen) = nnx.split(alignment), nnx.split(model)

    def loss(weights: nnx.State, codes: Any, frozen: nnx.State) -> Any:
        modules = nnx.merge(one, weights), nnx.merge(two, frozen)
        targets = "fixed" if head == "softmax" else "straight_through"
        return autoregressive_loss(*modules, codes, (ids, mask), targets=targets)

    run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    whole = jax.jit(run)(weights, codes, frozen)
    mesh = make_mesh({"data": 2, "fsdp": 1, "spatial": 4, "tensor": 1, "slices": 1})
    assert split_of(2, mesh) == Split(("data",), "spatial")

    def split(*arguments: Any) -> Any:
        with partitioning.over_devices(split_of(2)):
            return run(*arguments)

    with jax.set_mesh(mesh):
        shardings = parameter_shardings(weights, mesh), None, parameter_shardings(frozen, mesh)
        placed = jax.device_put((weights, codes, frozen), shardings)
        compiled = jax.jit(split).lower(*placed).compile()
        found = compiled(*placed)
    same = jax.tree.map(near, whole, found)
    assert all(jax.tree.leaves(same)), same
    # 42 items are filled up to 64; of a clip each device has 16 in the MLP (48 wide) and the head.
    shapes = set(re.findall(r"f32\[([\d,]+)\]", compiled.as_text() or ""))
    for width in (48, kernel.shape[1]):
        assert {f"1,16,{width}", f"16,{width}"} & shapes, (width, shapes)
        assert not {f"{lead}{n},{width}" for n in (42, 64) for lead in ("", "1,", "2,")} & shapes


def main(*heads: str) -> None:
    model = LanguageModel(tiny(mrope_section=(1, 1, 2)), rngs=nnx.Rngs(0), remat="layers")
    for head in heads:
        check(head, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
