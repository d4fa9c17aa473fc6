"""The contracts around the training loop: a task, its loader and batches, an evaluator.

A task says what is trained, on what, and towards which loss. The loop does the rest: mesh, compiled
step, metrics, checkpoints, exact resume. `docs/architecture.md` adds one of each as an example.
"""

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from pyratok_jax.checkpoints.partition import Arrays, Partition
from pyratok_jax.io import Json
from pyratok_jax.training.distributed.transfer import DataShard
from pyratok_jax.training.step import Metrics

S = TypeVar("S", bound=nnx.Module)
# The shard that this process reads, given the number of rows of the global batch.
ShareOf = Callable[[int], DataShard]
# What a loader needs to continue its stream; plain JSON.
LoaderState = Mapping[str, Json]
# Of `Task.loss`: its batch, as global arrays; the steps done over all steps; loss and terms to log.
DeviceBatch = Mapping[str, Array]
Progress = Float[Array, ""]
LossAndTerms = tuple[Float[Array, ""], Metrics]


class Batch(NamedTuple):
    """What one process has read of one global batch.

    Attributes:
        arrays: what the step takes, by name; the leading axis of each is this process's rows.
        rows: of the global batch, over all processes.
        bucket: name of the batch's shape, the same on all processes; "" where there is only one.
    """

    arrays: Mapping[str, np.ndarray]
    rows: int
    bucket: str = ""


class Loader(Protocol):
    """An endless stream of batches that can be resumed anywhere.

    Batch i is a function of the config and i alone, so that a resumed run sees the batches of an
    unbroken one, on whatever mesh and number of processes. At step i all processes return batches
    of the same bucket.
    """

    @property
    def broken(self) -> dict[str, str]:
        """What could not be read so far and was skipped, with the reason; kept in checkpoints."""

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            UserError: the data cannot be read.
        """

    def get_state(self) -> LoaderState:
        """Where the stream is."""

    def set_state(self, state: LoaderState) -> None:
        """Continue from there."""

    def close(self) -> None:
        """End threads and processes."""


class Task(Protocol[S]):
    """What is trained: a module, which of its variables, on which data, towards which loss."""

    @property
    def system(self) -> S:
        """The module with its first weights, frozen networks of the loss included."""

    def is_trainable(self, name: str, variable: nnx.Variable) -> bool:
        """Whether training changes a variable, by its dotted name in the module."""

    def make_loader(self, share_of: ShareOf) -> Loader:
        """The stream of batches.

        Args:
            share_of: the shard of a batch that this process reads, given the global rows of that
                batch; batches of other sizes may be sharded otherwise.

        Raises:
            UserError: the data cannot be read, or not be shared out so.
        """

    def loss(
        self, system: S, batch: DeviceBatch, key: PRNGKeyArray, progress: Progress
    ) -> LossAndTerms:
        """Scalar loss and the terms to log; pure and jittable.

        Args:
            system: the module, merged from the current arrays.
            batch: `Batch.arrays`, as global arrays (or a part of their rows, with `accumulate`).
            key: of this step.
            progress: steps done over all steps, in [0, 1].
        """


class CaptionedClips(NamedTuple):
    """Clips of one padded size, each with a caption; a row without any true word has none."""

    video: UInt8[Array, "b t h w 3"]
    text_ids: Int[Array, "b l"]
    text_mask: Bool[Array, "b l"]


class ModelView(NamedTuple, Generic[S]):
    """The model in training as an evaluator sees it.

    Attributes:
        mesh: that the arrays are on, also that of `jax.set_mesh`.
        partition: `partition.merge(params, frozen)` is the module; to be called inside of jit.
        params: trainable arrays: their moving averages where the training keeps some.
        frozen: the other arrays.
    """

    mesh: Mesh
    partition: Partition[S]
    params: Arrays
    frozen: Arrays


class Evaluation(NamedTuple):
    """What an evaluator has found.

    Attributes:
        metrics: by name; logged as `EVALUATOR/NAME`.
        pictures: by name; shown in TensorBoard.
    """

    metrics: Mapping[str, float]
    pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]


class Evaluator(Protocol):
    """A measurement of the model during its training.

    Attributes:
        name: prefix of its metrics.
        every: steps between two runs; it runs after the last step as well.
    """

    name: str
    every: int

    def run(self, view: ModelView[Any], step: int) -> Evaluation:
        """Measure the model after `step` steps.

        All processes call this at the same steps and must start the same programs on the mesh in
        the same order; process 0 logs what it returns. It must not change the model, nor draw from
        a random stream of the training: a run with evaluators has the weights of one without.
        """
