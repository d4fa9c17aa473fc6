"""Encode and decode with the height of every frame split over devices: 4K and 8K without seams.

Each device holds its rows at every resolution. Convolutions fetch one row from each neighbour, the
middle block's attention passes keys and values round; no device ever holds a whole frame.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from pyratok_jax.models.video_vae import Encoded
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.models.wan_vae.streaming import stream_decode, stream_encode
from pyratok_jax.nn.halo import sharded_height

ROWS = "height"


def sharded_encode(
    vae: WanVAE,
    video: Float[Array, "b t h w 3"],
    mesh: Mesh,
    *,
    axis: str = ROWS,
    streamed: bool = False,
) -> Encoded:
    """`vae.encode` with frames split by height over mesh axis `axis`; results are split alike.

    Args:
        vae: the model, on every device whole.
        video: h must be a multiple of the spatial factor times the axis' size.
        mesh: devices.
        axis: the mesh axis for the height.
        streamed: walk time in chunks (`stream_encode`).

    Raises:
        ValueError: when the clip does not divide.
    """
    _check(video.shape[2], vae.config.spatial_factor, mesh, axis)
    vae.check(*video.shape[1:4])
    run = stream_encode if streamed else (lambda model, x: model.encode(x))
    return _split(run, vae, video, mesh, axis)


def sharded_decode(
    vae: WanVAE,
    z: Float[Array, "b t h w z"],
    mesh: Mesh,
    *,
    axis: str = ROWS,
    streamed: bool = False,
) -> Float[Array, "b T H W 3"]:
    """`vae.decode` with frames split by height over mesh axis `axis`; see `sharded_encode`."""
    _check(z.shape[2], 1, mesh, axis)
    run = stream_decode if streamed else (lambda model, x: model.decode(x))
    return _split(run, vae, z, mesh, axis)


def _split(run: Callable[[WanVAE, Array], Any], vae: WanVAE, x: Array, mesh: Mesh, axis: str):
    graph, state = nnx.split(vae)

    def local(state: Any, x: Array) -> Any:
        with sharded_height(axis):
            return run(nnx.merge(graph, state), x)

    rows = P(None, None, axis)
    # Loop carries start as constants and become different per device, which the check forbids.
    return jax.shard_map(local, mesh=mesh, in_specs=(P(), rows), out_specs=rows, check_vma=False)(
        state, x
    )


def _check(h: int, factor: int, mesh: Mesh, axis: str) -> None:
    parts = mesh.shape[axis]
    if h % (factor * parts):
        raise ValueError(
            f"height {h} does not split into {parts} parts of a multiple of {factor} rows; "
            f"pad it to a multiple of {factor * parts}"
        )
