"""The attention kernel on clips over a mesh, in the interpreter. Run with 4 devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pyratok_jax.models.language import fused_attention as fused
from pyratok_jax.nn.partitioning import over_devices
from pyratok_jax.nn.trace import Split

CLIPS, TOKENS, WIDTH = 4, 150, 128
AXES = ("data", "fsdp")


def value_and_gradients(
    arrays: tuple[jax.Array, ...], valid: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mask = np.tri(TOKENS, TOKENS, dtype=bool)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = fused.fused_attention(q, k, v, mask, valid, 0.1, interpret=True)
        return jnp.sum(jnp.sin(out)), out

    gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays)
    return out, gradients


def main() -> None:
    fused.SIZES = ((128, 128),) * 3
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = tuple(
        jax.random.normal(key, (CLIPS, TOKENS, heads, WIDTH))
        for key, heads in zip(keys, (2, 1, 1), strict=True)
    )
    valid = jnp.ones((CLIPS, TOKENS), bool).at[1, 3:40].set(False).at[3, 1:].set(False)
    wanted = jax.jit(value_and_gradients)(arrays, valid)
    mesh = jax.make_mesh((2, 2), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def split(*given: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        run: Callable = value_and_gradients
        with over_devices(Split(AXES)):
            return run(given[:3], given[3])

    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, P(AXES))
        found = jax.jit(split)(*jax.device_put((*arrays, valid), place))
    for name, a, b in zip("oqkv", jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        assert b.sharding.spec[0] == AXES or name != "o", b.sharding
        a, b = np.asarray(a), np.asarray(b)
        worst = np.abs(a - b).max() / np.abs(a).max()
        assert worst < 1e-6, (name, worst)


if __name__ == "__main__":
    main()
