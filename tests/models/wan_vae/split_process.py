"""Run in a process with 8 virtual devices: frames split by height against the whole."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pyratok_jax.models.wan_vae import attention
from pyratok_jax.models.wan_vae.config import tiny
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.models.wan_vae.spatial import sharded_decode, sharded_encode
from pyratok_jax.nn.lowering import conv_lowering


def error(a, b):
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


def compile_and_check(run, mesh, state, x):
    """Compile for the mesh; no collective but the passing of rows may appear."""
    rows = NamedSharding(mesh, P(None, None, "height"))
    placed = jax.device_put(x, rows)
    kept = jax.device_put(state, NamedSharding(mesh, P()))
    compiled = jax.jit(run).lower(kept, placed).compile()
    text = compiled.as_text()
    for name in ("all-gather", "all-reduce", "all-to-all"):
        assert not re.search(rf"\b{name}(-start)?\(", text), name
    assert "collective-permute" in text
    return compiled(kept, placed)


def main(devices: int) -> None:
    attention.BLOCK = 8  # Several blocks even in small frames.
    mesh = Mesh(np.array(jax.devices()[:devices]), ("height",))
    for residual in (False, True):
        vae = WanVAE(tiny(8, 4, residual), rngs=nnx.Rngs(0))
        graph, state = nnx.split(vae)
        video = jnp.asarray(
            np.random.default_rng(0).uniform(-1, 1, (1, 5, 8 * devices, 16, 3)), jnp.float32
        )
        whole = jax.jit(lambda s, v, g=graph: nnx.merge(g, s).encode(v))(state, video)
        encode = lambda s, v, g=graph: sharded_encode(nnx.merge(g, s), v, mesh)  # noqa: E731
        split = compile_and_check(encode, mesh, state, video)
        for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
            assert error(a, b) < 1e-5, error(a, b)
        expected = jax.jit(lambda s, z, g=graph: nnx.merge(g, s).decode(z))(state, whole.mean)
        decode = lambda s, z, g=graph: sharded_decode(nnx.merge(g, s), z, mesh)  # noqa: E731
        wrong = error(compile_and_check(decode, mesh, state, whole.mean), expected)
        assert wrong < 1e-5, wrong
    if devices == 4:
        streamed = jax.jit(
            lambda s, v: sharded_encode(nnx.merge(graph, s), v, mesh, streamed=True)
        )(state, video)
        assert error(streamed.mean, whole.mean) < 1e-5
        with conv_lowering("tpu"):  # Each device's rows are cut into strips once more.
            strips = jax.jit(lambda s, v: sharded_encode(nnx.merge(graph, s), v, mesh))(
                state, jnp.concatenate([video, video[:, :, ::-1]], axis=2)
            )
        twice = jax.jit(lambda s, v: nnx.merge(graph, s).encode(v))(
            state, jnp.concatenate([video, video[:, :, ::-1]], axis=2)
        )
        assert error(strips.mean, twice.mean) < 1e-5
        try:
            sharded_encode(vae, video[:, :, :8], mesh)
        except ValueError as problem:
            assert "does not split into 4 parts" in str(problem)
        else:
            raise AssertionError("an indivisible height was accepted")
    print("equal")


if __name__ == "__main__":
    main(int(sys.argv[1]))
