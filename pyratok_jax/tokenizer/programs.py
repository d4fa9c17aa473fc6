"""The compiled programs of a tokenizer, for one device or with frames sharded over several."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree, UInt8

from pyratok_jax.data.padding import to_model_range
from pyratok_jax.models import video_vae
from pyratok_jax.models.pyratok.flips import Flips
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.nn import partitioning
from pyratok_jax.nn.lora import without_adapters
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.nn.trace import Split

P = ParamSpec("P")
R = TypeVar("R")
State = nnx.State
Text = TextCondition | None
Ids = tuple[Array, ...]  # of every level

ROWS = "rows"  # The mesh axis over which the height of frames is sharded.


def to_pixels(video: Float[Array, "*n"]) -> UInt8[Array, "*n"]:
    """[-1, 1] (clamped) to uint8 pixels, rounded to nearest."""
    return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def tokenize_step(graph: nnx.GraphDef) -> Callable[[State, Array, Text], Ids]:
    """(state, uint8 video, text) -> ids of every level, for a `PyraTok` split by `nnx.split`."""

    def tokenize(state: State, video: Array, text: Text) -> Ids:
        return nnx.merge(graph, state).tokenize(to_model_range(video), text)

    return tokenize


def _tokenize_flipped_step(
    graph: nnx.GraphDef,
) -> Callable[[State, Array, Text, Flips], tuple[Ids, Ids]]:
    def tokenize_flipped(state: State, video: Array, text: Text, flips: Flips) -> tuple[Ids, Ids]:
        model = nnx.merge(graph, state)
        return model.tokenize_flipped(to_model_range(video), text, flips)

    return tokenize_flipped


def detokenize_step(graph: nnx.GraphDef) -> Callable[[State, Ids], Array]:
    """(state, ids of every level) -> uint8 video, for a `PyraTok` split by `nnx.split`."""

    def detokenize(state: State, ids: Ids) -> Array:
        return to_pixels(nnx.merge(graph, state).detokenize(ids))

    return detokenize


def _detokenize_first_step(graph: nnx.GraphDef) -> Callable[[State, Ids, Array], Array]:
    def detokenize_first(state: State, ids: Ids, levels: Array) -> Array:
        return to_pixels(nnx.merge(graph, state).detokenize_first(ids, levels))

    return detokenize_first


def _tokenize_next_step(
    graph: nnx.GraphDef,
) -> Callable[[State, Array, Text, PyTree], tuple[Ids, PyTree]]:
    def tokenize_next(state: State, video: Array, text: Text, caches: PyTree) -> tuple[Ids, PyTree]:
        return nnx.merge(graph, state).tokenize_next(to_model_range(video), text, caches)

    return tokenize_next


def _detokenize_next_step(
    graph: nnx.GraphDef,
) -> Callable[[State, Ids, PyTree], tuple[Array, PyTree]]:
    def detokenize_next(state: State, ids: Ids, caches: PyTree) -> tuple[Array, PyTree]:
        video, caches = nnx.merge(graph, state).detokenize_next(ids, caches)
        return to_pixels(video), caches

    return detokenize_next


def _continuous_step(graph: nnx.GraphDef) -> Callable[[State, Array], Array]:
    def reconstruct_continuous(state: State, video: Array) -> Array:
        vae = nnx.merge(graph, state).vae
        vae.encoder = without_adapters(vae.encoder)
        posterior = video_vae.encode(vae, to_model_range(video))
        return to_pixels(video_vae.decode(vae, posterior.mean))

    return reconstruct_continuous


@dataclasses.dataclass(frozen=True)
class Programs:
    """Every program of a tokenizer, all built for the same placement of its arrays.

    Videos are uint8 (b, t, h, w, 3), ids uint32 (b, t, h, w) per level, caches what the program
    gave for the segment before (None at a clip's first).

    Attributes:
        tokenize: (video, text) -> ids.
        tokenize_flipped: (video, text, flips) -> ids, ids as they were flipped.
        detokenize: (ids,) -> video.
        detokenize_first: (ids, number of levels) -> video of the first levels alone.
        tokenize_next: (video, text, caches) -> ids, caches.
        detokenize_next: (ids, caches) -> video, caches.
        reconstruct_continuous: (video,) -> video, by the frozen VAE without quantisation.
        devices: number of devices that share every frame.
    """

    tokenize: Callable[[Array, Text], Ids]
    tokenize_flipped: Callable[[Array, Text, Flips], tuple[Ids, Ids]]
    detokenize: Callable[[Ids], Array]
    detokenize_first: Callable[[Ids, Array], Array]
    tokenize_next: Callable[[Array, Text, PyTree], tuple[Ids, PyTree]]
    detokenize_next: Callable[[Ids, PyTree], tuple[Array, PyTree]]
    reconstruct_continuous: Callable[[Array], Array]
    devices: int = 1

    @classmethod
    def build(cls, model: PyraTok, devices: Sequence[jax.Device] | None = None) -> "Programs":
        """Programs of `model`; each compiles at its first call.

        Args:
            model: its arrays are taken as they are now.
            devices: shard the height of every frame over these and replicate the weights on them;
                None: everything on the default device.
        """
        graph, state = nnx.split(model)
        mesh = None
        if devices is not None:
            mesh = Mesh(np.asarray(devices), (ROWS,), axis_types=(AxisType.Auto,))
            state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))

        def program(
            step: Callable[[nnx.GraphDef], Callable[Concatenate[State, P], R]],
        ) -> Callable[P, R]:
            return _placed(jax.jit(step(graph)), state, mesh)

        return cls(
            tokenize=program(tokenize_step),
            tokenize_flipped=program(_tokenize_flipped_step),
            detokenize=program(detokenize_step),
            detokenize_first=program(_detokenize_first_step),
            tokenize_next=program(_tokenize_next_step),
            detokenize_next=program(_detokenize_next_step),
            reconstruct_continuous=program(_continuous_step),
            devices=1 if devices is None else len(devices),
        )


def _placed(compiled: Callable[..., R], state: State, mesh: Mesh | None) -> Callable[..., R]:
    """`compiled` with its state, its first argument (video or ids) sharded over a mesh."""
    if mesh is None:
        return functools.partial(compiled, state)
    sharding = NamedSharding(mesh, PartitionSpec(None, None, ROWS))

    def run(frames: PyTree, *more: PyTree) -> R:
        frames = jax.tree.map(lambda x: _sharded_or_whole(x, sharding), frames)
        with jax.set_mesh(mesh), partitioning.over_devices(Split(height=ROWS)):
            return compiled(state, frames, *more)

    return run


def _sharded_or_whole(x: Array, sharding: NamedSharding) -> Array:
    """An array sharded by rows where they divide; coarse token grids may have too few."""
    divides = x.shape[2] % sharding.mesh.size == 0
    return jax.device_put(x, sharding if divides else NamedSharding(sharding.mesh, PartitionSpec()))
