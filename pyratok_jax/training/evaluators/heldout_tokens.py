"""Nats per token of held-out tokens during the training of a prior, with and without captions.

What the captions tell of the tokens is the difference, `nats_gain`.
"""

import functools
from collections.abc import Mapping
from typing import Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Arrays, Partition
from pyratok_jax.errors import UserError
from pyratok_jax.nn.partitioning import over_devices
from pyratok_jax.training.distributed.coordinator import AheadOfTime
from pyratok_jax.training.distributed.sharding import split_of
from pyratok_jax.training.distributed.transfer import batch_to_mesh, data_shard
from pyratok_jax.training.loop.contracts import (
    DeviceBatch,
    Evaluation,
    Loader,
    ModelView,
    ShareOf,
    Task,
)

S_contra = TypeVar("S_contra", bound=nnx.Module, contravariant=True)
Terms = Mapping[str, Array]


@runtime_checkable
class TokenTask(Protocol[S_contra]):
    """What a task must have besides, for held-out tokens to be measured."""

    def heldout_loader(self, path: str, share_of: ShareOf) -> Loader:
        """The batches of another dataset, captions never left out."""

    def measure(self, system: S_contra, batch: DeviceBatch, key: PRNGKeyArray) -> Terms:
        """Terms of a batch under its own captions, without flips and tasks; jittable."""


class HeldoutTokens:
    """An evaluator (`contracts.Evaluator`).

    Masks and estimates of batch i are those of key i: values of different steps are of the same
    masks.
    """

    def __init__(
        self,
        config: ConfigDict,
        task: Task[nnx.Module],
        *,
        name: str,
        every: int,
        path: str,
        batches: int = 8,
    ):
        """Keep what is asked for.

        Args:
            config: of the training.
            task: also a `TokenTask`.
            name: prefix of the metrics.
            every: steps between two runs.
            path: a dataset of tokens of the same tokenizer, of videos that are not trained on.
            batches: of the training's size, that are measured.

        Raises:
            UserError: a task that does not train on tokens, or no batch.
        """
        if not isinstance(task, TokenTask):
            raise UserError(
                f"config.evaluators: {name} measures tokens, and config.task {config.task} does "
                "not train on any"
            )
        if batches < 1:
            raise UserError(f"config.evaluators: {name}: batches is {batches}, expected at least 1")
        self.name, self.every = name, every
        self._task, self._path, self._batches = task, path, batches
        self._program: AheadOfTime[dict[str, Array]] | None = None

    def run(self, view: ModelView[nnx.Module], step: int) -> Evaluation:
        """See `contracts.Evaluator`."""
        if self._program is None:
            self._program = AheadOfTime(self._jit(view.partition, view.mesh))
        loader = self._task.heldout_loader(self._path, functools.partial(data_shard, view.mesh))
        rows = []
        try:
            for number in range(self._batches):
                batch = next(loader)
                arrays = batch_to_mesh(batch.arrays, view.mesh, batch.rows)
                found = self._program(view.params, view.frozen, arrays, np.uint32(number))
                rows.append({name: float(value) for name, value in found.items()})
        finally:
            loader.close()
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        return Evaluation(means, {})

    def _jit(self, partition: Partition[nnx.Module], mesh: Mesh) -> jax.stages.Wrapped:
        def measure(
            params: Arrays, frozen: Arrays, batch: Arrays, number: Array
        ) -> dict[str, Array]:
            with over_devices(split_of(len(batch["level_1"]))):
                system, key = partition.merge(params, frozen), jax.random.key(number)
                terms = dict(self._task.measure(system, batch, key))
                absent = {}
                if "text_mask" in batch:
                    absent["text_mask"] = jnp.zeros_like(batch["text_mask"])
                if "classes" in batch:
                    absent["classes"] = jnp.full_like(batch["classes"], -1)
                if absent:
                    nothing = {**batch, **absent}
                    terms["nats_none"] = self._task.measure(system, nothing, key)["nats"]
                    terms["nats_gain"] = terms["nats_none"] - terms["nats"]
                return terms

        return jax.jit(measure, out_shardings=NamedSharding(mesh, PartitionSpec()))
