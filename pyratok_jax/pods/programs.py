"""The programs of a tokenizer, ready to compile: train step, tokenise step, decode step.

They are what `training.loop` and `tokenizer.Tokenizer` compile, on a mesh of devices that need not
be attached, with shapes in place of arrays.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from pyratok_jax.data.buckets import Bucket
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.nn.lowering import conv_lowering
from pyratok_jax.nn.partitioning import over_devices
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.tokenizer import detokenize_step, tokenize_step
from pyratok_jax.training.abstract import AbstractTraining, abstract_batch
from pyratok_jax.training.distributed.sharding import (
    batch_spec,
    height_axis,
    parameter_shardings,
    split_of,
)

STEPS = ("train", "tokenise", "decode")


class StepProgram(NamedTuple):
    """A function and the shapes of its arguments.

    Attributes:
        run: the function.
        arguments: shapes with shardings.
        donated: positions of donated arguments.
        out_shardings: of the results; None leaves them to the compiler.
        clips: of the batch, over all devices.
        tokens, frames: of each clip that one call draws, of a sampling step; frames may be a share
            of one.
    """

    run: Callable[..., PyTree]
    arguments: tuple[PyTree, ...]
    donated: tuple[int, ...]
    out_shardings: PyTree
    clips: int
    tokens: float = 0.0
    frames: float = 0.0


def train_program(
    training: AbstractTraining, config: ConfigDict, bucket: Bucket, mesh: Mesh
) -> StepProgram:
    """The step of `training.loop`, with the batch that the config gives the bucket."""
    state = placed(training.state, parameter_shardings(training.state, mesh))
    frozen = placed(training.frozen, parameter_shardings(training.frozen, mesh))
    batch = placed_batch(abstract_batch(config, bucket), mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    clips = batch["video"].shape[0]
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=NamedSharding(mesh, PartitionSpec()))
    arguments = (state, frozen, batch, seed)
    return StepProgram(training.step, arguments, (0,), (shardings, None), clips)


def tokenise_program(
    training: AbstractTraining, config: ConfigDict, bucket: Bucket, mesh: Mesh, clips: int
) -> StepProgram:
    """What `Tokenizer.encode_padded` compiles: uint8 pixels and text embeddings to ids."""
    graph, state = _tokenizer(training, mesh)
    width, length = config_text_width(training), config.language.length
    batch = placed_batch(
        {
            "video": jax.ShapeDtypeStruct(
                (clips, bucket.frames, bucket.height, bucket.width, 3), jnp.uint8
            ),
            "text": jax.ShapeDtypeStruct((clips, length, width), jnp.float32),
            "mask": jax.ShapeDtypeStruct((clips, length), jnp.bool_),
        },
        mesh,
    )
    text = TextCondition(cast(Array, batch["text"]), cast(Array, batch["mask"]))
    step = tokenize_step(graph)

    def run(state: nnx.State, video: Array, text: TextCondition) -> tuple[Array, ...]:
        with over_devices(split_of(clips, mesh)):
            return step(state, video, text)

    return StepProgram(run, (state, batch["video"], text), (), None, clips)


def decode_program(
    training: AbstractTraining, config: ConfigDict, bucket: Bucket, mesh: Mesh, clips: int
) -> StepProgram:
    """What `Tokenizer.decode_padded` compiles: ids to uint8 pixels."""
    graph, state = _tokenizer(training, mesh)
    model: PyraTok = nnx.merge(graph, state)
    shapes = model.grid_shapes(bucket.frames, bucket.height, bucket.width)
    ids = tuple(
        placed_batch({"ids": jax.ShapeDtypeStruct((clips, *shape), jnp.uint32)}, mesh)["ids"]
        for shape in shapes
    )
    step = detokenize_step(graph)

    def run(state: nnx.State, ids: tuple[Array, ...]) -> Array:
        with over_devices(split_of(clips, mesh)):
            return step(state, ids)

    # Frames stay sharded as their tokens: without this the compiler may gather them.
    video = (clips, bucket.frames, bucket.height, bucket.width, 3)
    return StepProgram(run, (state, ids), (), NamedSharding(mesh, batch_spec(video, mesh)), clips)


def config_text_width(training: AbstractTraining) -> int:
    """Width of the text embeddings that the levels read."""
    return training.state.params["tokenizer.null_text"].shape[0]


def _tokenizer(training: AbstractTraining, mesh: Mesh) -> tuple[nnx.GraphDef, PyTree]:
    """The tokenizer of a training taken apart, its arrays placed by the rules."""
    system = training.partition.merge(training.state.params, training.frozen)
    graph, state = nnx.split(system.tokenizer)
    return graph, placed(state, parameter_shardings(state, mesh))


def placed(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes with shardings."""

    def place(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, tree, shardings)


def placed_batch(
    arrays: dict[str, jax.ShapeDtypeStruct], mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch's shapes with their shardings."""

    def spec(x: jax.ShapeDtypeStruct) -> PartitionSpec:
        if height_axis(x.shape[0], mesh) is None or x.ndim == 5:
            return batch_spec(x.shape, mesh)
        # Token grids (b, t, h, w) are small: each device takes the rows that it needs.
        return PartitionSpec(batch_spec(x.shape, mesh)[0])

    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec(x)))
        for name, x in arrays.items()
    }


@contextlib.contextmanager
def for_tpu(mesh: Mesh) -> Iterator[None]:
    """Trace within this block as on the devices of `mesh`, which are TPUs."""
    with jax.set_mesh(mesh), conv_lowering("tpu"):
        yield
