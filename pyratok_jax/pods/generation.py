"""The programs of a prior over tokens, ready to compile: a training step and a sampling step."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from pyratok_jax.data.buckets import Bucket
from pyratok_jax.errors import UserError
from pyratok_jax.models.prior import blocks, masked, raster
from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.config import Sampling
from pyratok_jax.models.prior.layout import Layout
from pyratok_jax.models.prior.model import Prior, narrowed
from pyratok_jax.models.prior.sampling import Unmasking, row_keys
from pyratok_jax.models.prior.transformer import Memory
from pyratok_jax.nn.partitioning import over_devices
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.pods.programs import StepProgram, placed, placed_batch
from pyratok_jax.training.abstract_generator import AbstractGenerator, abstract_tokens
from pyratok_jax.training.distributed.sharding import (
    batch_spec,
    cache_spec,
    parameter_shardings,
    split_of,
)

STEPS = ("generator", "generate")


def generator_program(
    training: AbstractGenerator, config: ConfigDict, bucket: Bucket, mesh: Mesh
) -> StepProgram:
    """The step of `training.loop` for a prior, with the batch that the config gives the bucket."""
    state = placed(training.state, parameter_shardings(training.state, mesh))
    frozen = placed(training.frozen, parameter_shardings(training.frozen, mesh))
    batch = placed_batch(abstract_tokens(training, config, bucket), mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=NamedSharding(mesh, PartitionSpec()))
    clips = batch["level_1"].shape[0]
    return StepProgram(training.step, (state, frozen, batch, seed), (0,), (shardings, None), clips)


def generate_program(
    training: AbstractGenerator, config: ConfigDict, bucket: Bucket, mesh: Mesh, clips: int
) -> StepProgram:
    """One sampling step as `generator.drawing` calls it.

    Of "blocks" that is a latent frame after frame 0, of "raster" the tokens of one call, of
    "masked" one parallel step of the coarsest level.

    Raises:
        UserError: impossible settings of sampling.
    """
    try:
        sampling = Sampling.from_dict(config.sampling.to_dict())
    except (TypeError, ValueError) as error:
        raise UserError(f"config.sampling: {error}") from error
    own = training.system.prior
    # As `load_generator` has it.
    prior = nnx.eval_shape(lambda: narrowed(Prior(own.config, rngs=nnx.Rngs(0), dtype=own.dtype)))
    make = {"blocks": _blocks, "raster": _raster, "masked": _masked}[own.config.order]
    return make(_Sampled(prior, training, training.layout(bucket), sampling, mesh, clips))


class _Sampled(NamedTuple):
    """What the sampling steps of all orders are made from."""

    prior: Prior
    training: AbstractGenerator
    layout: Layout
    sampling: Sampling
    mesh: Mesh
    clips: int

    def module(self, module: nnx.Module) -> tuple[nnx.GraphDef, PyTree]:
        """A module taken apart, its arrays placed by the rules."""
        graph, state = nnx.split(module)
        return graph, placed(state, parameter_shardings(state, self.mesh))

    def condition(self) -> Condition:
        """Of all rows, with guidance the unconditional ones too."""
        rows = self.clips * (2 if self.sampling.guided else 1)
        sizes, length = self.prior.config, self.training.length
        text, classes = None, None
        if sizes.condition == "text":
            text = TextCondition(
                cast(Array, self._rows((rows, length, sizes.text_width), jnp.float32)),
                cast(Array, self._rows((rows, length), jnp.bool_)),
            )
        if sizes.condition == "classes":
            classes = cast(Array, self._rows((rows,), jnp.int32))
        return Condition(rows, text, classes)

    def keys(self) -> jax.ShapeDtypeStruct:
        """A key for each clip."""
        keys = jax.eval_shape(lambda: row_keys(0, np.arange(self.clips)))
        return self._rows(keys.shape, keys.dtype)

    def rows(self, tree: PyTree) -> PyTree:
        """Shapes of arrays whose first axis is rows, placed as a batch; scalars on every chip."""
        return jax.tree.map(lambda x: self._rows(x.shape, x.dtype), tree)

    def memory(self, memory: Memory) -> Memory:
        """A KV cache placed by the rules."""

        def place(x: Array, spec: PartitionSpec) -> Any:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec))

        everywhere = jax.tree.map(lambda x: place(x, PartitionSpec()), memory)
        return everywhere._replace(
            keys=place(memory.keys, cache_spec(memory.keys.shape, self.mesh)),
            values=place(memory.values, cache_spec(memory.values.shape, self.mesh)),
            valid=self.rows(memory.valid),
        )

    def program(
        self, run: Callable[..., PyTree], arguments: tuple[PyTree, ...], tokens: float
    ) -> StepProgram:
        """Of `run`, which draws that many tokens of each clip."""
        time = self.layout.latent_stride[0]
        frames = 1 + (self.layout.groups - 1) * time
        share = tokens / self.layout.size

        def split(*given: PyTree) -> PyTree:
            with over_devices(split_of(self.clips)):
                return run(*given)

        return StepProgram(split, arguments, (), None, self.clips, tokens, share * frames)

    def _rows(self, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        spec = batch_spec(shape[:1], self.mesh) if shape else PartitionSpec()
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))


def _blocks(own: _Sampled) -> StepProgram:
    quantizer = own.training.system.quantizer
    assert quantizer is not None
    graph, weights = own.module(own.prior)
    levels, synthesis = own.module(quantizer)
    layout, groups = own.layout, own.layout.groups
    if groups == 1:
        raise UserError("order blocks draws a frame after frame 0 in a step: give more frames")

    def start(weights: PyTree, condition: Condition) -> blocks.BlocksState:
        return blocks.blocks_start(
            nnx.merge(graph, weights), condition, groups=groups, layout=layout
        )

    def group(weights: PyTree, synthesis: PyTree, state: blocks.BlocksState, keys: Any) -> PyTree:
        return blocks.blocks_group(
            nnx.merge(graph, weights), nnx.merge(levels, synthesis), state, keys,
            groups=groups, layout=layout, sampling=own.sampling,
        )  # fmt: skip

    keys = own.keys()
    first = jax.eval_shape(start, weights, own.condition())
    state, _ = jax.eval_shape(group, weights, synthesis, first, keys)
    state = blocks.BlocksState(own.memory(state.memory), *own.rows(state[1:]))
    count = sum(int(np.prod(grid)) for grid in blocks.group_grids(layout, first=False))
    made = own.program(group, (weights, synthesis, state, keys), count)
    return made._replace(frames=layout.latent_stride[0])


def _raster(own: _Sampled) -> StepProgram:
    graph, weights = own.module(own.prior)

    def start(weights: PyTree, condition: Condition) -> raster.RasterState:
        return raster.raster_start(
            nnx.merge(graph, weights), condition, rows=own.clips, layout=own.layout
        )

    def chunk(weights: PyTree, state: raster.RasterState, keys: Any) -> PyTree:
        return raster.raster_chunk(
            nnx.merge(graph, weights), state, keys, None,
            layout=own.layout, sampling=own.sampling,
        )  # fmt: skip

    state = jax.eval_shape(start, weights, own.condition())
    state = raster.RasterState(own.memory(state.memory), *own.rows(state[1:]))
    return own.program(chunk, (weights, state, own.keys()), raster.CHUNK)


def _masked(own: _Sampled) -> StepProgram:
    graph, weights = own.module(own.prior)
    layout, bits = own.layout, own.prior.config.bits
    steps = [own.sampling.steps_of(level) for level in range(own.prior.config.levels)]
    level = layout.level == 0
    numbers = (jnp.int32(0), jnp.int32(steps[0]), jnp.int32(level.sum()))

    def step(weights: PyTree, state: Unmasking, condition: Condition, keys: Any) -> Unmasking:
        return masked.masked_step(
            nnx.merge(graph, weights), state, condition, keys, jnp.asarray(level), numbers,
            (jnp.float32(1.0), jnp.float32(1.0)), layout=layout, sampling=own.sampling,
        )  # fmt: skip

    start = jax.eval_shape(lambda: masked.masked_start(own.clips, bits, layout, None))
    arguments = (weights, own.rows(start), own.condition(), own.keys())
    # On average over the steps of all levels.
    return own.program(step, arguments, layout.size / sum(steps))
