"""Run in a process with 8 virtual devices: frames split by height against the whole."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pyratok_jax.models import video_vae
from pyratok_jax.models.wan_vae.config import tiny
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.nn import frame_attention as attention
from pyratok_jax.nn.lowering import conv_lowering
from pyratok_jax.nn.partitioning import Split, over_devices
from tests.models.wan_vae.chunks import encode_in_chunks


def error(a, b):
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


def compile_and_check(run, mesh, state, x):
    """Compile for the mesh; no collective but the exchange of halo rows may appear."""
    rows = NamedSharding(mesh, P(None, None, "height"))
    placed = jax.device_put(x, rows)
    kept = jax.device_put(state, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh), over_devices(Split(height="height")):
        compiled = jax.jit(run).lower(kept, placed).compile()
    text = compiled.as_text()
    for name in ("all-gather", "all-reduce", "all-to-all"):
        assert not re.search(rf"\b{name}(-start)?\(", text), name
    assert "collective-permute" in text
    return compiled(kept, placed)


def main(devices: int) -> None:
    attention.BLOCK = 8  # Several blocks even in small frames.
    mesh = Mesh(np.array(jax.devices()[:devices]), ("height",), axis_types=(AxisType.Auto,))
    for residual in (False, True):
        vae = WanVAE(tiny(8, 4, residual), rngs=nnx.Rngs(0))
        graph, state = nnx.split(vae)
        video = jnp.asarray(
            np.random.default_rng(0).uniform(-1, 1, (1, 5, 8 * devices, 16, 3)), jnp.float32
        )
        whole = jax.jit(lambda s, v, g=graph: nnx.merge(g, s).encode(v))(state, video)
        encode = lambda s, v, g=graph: video_vae.encode(nnx.merge(g, s), v)  # noqa: E731
        split = compile_and_check(encode, mesh, state, video)
        for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
            assert error(a, b) < 1e-5, error(a, b)
        expected = jax.jit(lambda s, z, g=graph: nnx.merge(g, s).decode(z))(state, whole.mean)
        decode = lambda s, z, g=graph: video_vae.decode(nnx.merge(g, s), z)  # noqa: E731
        wrong = error(compile_and_check(decode, mesh, state, whole.mean), expected)
        assert wrong < 1e-5, wrong
    if devices == 4:
        encode = lambda s, v: video_vae.encode(nnx.merge(graph, s), v)  # noqa: E731
        streamed = compile_and_check(
            lambda s, v: encode_in_chunks(nnx.merge(graph, s), v), mesh, state, video
        )
        assert error(streamed.mean, whole.mean) < 1e-5
        mirrored = jnp.concatenate([video, video[:, :, ::-1]], axis=2)
        with conv_lowering("tpu"):  # Each device's rows are cut into strips once more.
            strips = compile_and_check(encode, mesh, state, mirrored)
        twice = jax.jit(encode)(state, mirrored)
        assert error(strips.mean, twice.mean) < 1e-5
        try:
            compile_and_check(encode, mesh, state, video[:, :, :8])
        except ValueError as problem:
            assert "does not split over 4 devices" in str(problem)
        else:
            raise AssertionError("an indivisible height was accepted")
    print("equal")


if __name__ == "__main__":
    main(int(sys.argv[1]))
