"""One training: everything is put together, resumed, run to the end or to a signal, and closed."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple

import jax
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Arrays, Partition
from pyratok_jax.training.checkpoints import Checkpoints
from pyratok_jax.training.distributed.compile_barrier import barrier
from pyratok_jax.training.distributed.sharding import make_mesh
from pyratok_jax.training.distributed.transfer import data_shard
from pyratok_jax.training.loop.contracts import S, Task
from pyratok_jax.training.loop.loop import Loop
from pyratok_jax.training.loop.monitoring import profiled_steps
from pyratok_jax.training.loop.preemption import StopSignal
from pyratok_jax.training.optimizer import make_optimizer
from pyratok_jax.training.registry import make_evaluators
from pyratok_jax.training.step import TrainState


class Trained(NamedTuple, Generic[S]):
    """What a training leaves in memory.

    Attributes:
        state: after the last step.
        frozen: arrays that it did not change.
        partition: of the task's module, whose `merge` takes the two.
        finished: False when it was interrupted and saved.
        steps_run: steps of this run alone.
        seconds: of these steps, without the first, which compiles.
        waited: of these seconds, those in which the loop waited for a batch.
    """

    state: TrainState
    frozen: Arrays
    partition: Partition[S]
    finished: bool
    steps_run: int
    seconds: float
    waited: float


def train(
    config: ConfigDict,
    workdir: Path,
    task: Task[S],
    *,
    on_start: Callable[[Partition[S]], object] | None = None,
    on_accepted: Callable[[], object] | None = None,
) -> Trained[S]:
    """Train to `config.steps`, resuming from the newest checkpoint in `workdir`.

    Args:
        config: see `config.training_config`.
        workdir: of checkpoints and logs.
        task: what is trained.
        on_start: called once before a training that begins at step 0; may change the partition's
            trainable arrays (data-dependent initialisation). It runs in every process and must do
            the same in each.
        on_accepted: called on process 0 once the working folder's run is begun or restored, before
            the first step: what writes into the folder must not do so before a refusal.

    Raises:
        UserError: an impossible setting, unreadable data, a loss that stays not finite.
    """
    # Impossible settings are refused before anything is computed.
    profiled_steps(config.profile_steps)
    make_optimizer(config.optimizer, config.steps)
    evaluators = make_evaluators(config, task)
    mesh = make_mesh(config.mesh)
    partition = Partition(task.system, task.is_trainable)
    # Before the record of the run is written: data that cannot be read leaves the folder as it is.
    loader = task.make_loader(functools.partial(data_shard, mesh))
    # A signal while the last checkpoint is written must not end the process: closed inside of it.
    with StopSignal() as stop, contextlib.ExitStack() as opened:
        opened.enter_context(contextlib.closing(loader))
        # Processes may have taken unequal time to read weights and data; the checkpoint manager
        # begins with a collective operation.
        barrier()
        checkpoints = opened.enter_context(contextlib.closing(Checkpoints(workdir, config)))
        if on_start is not None and checkpoints.newest() is None:
            on_start(partition)
        loop = Loop(config, workdir, task, partition, mesh, loader, checkpoints, stop, evaluators)
        if on_accepted is not None and jax.process_index() == 0:
            on_accepted()
        with jax.set_mesh(mesh), loop:
            loop.run()
    step = int(loop.state.step)
    return Trained(
        loop.state,
        loop.frozen,
        partition,
        finished=step >= config.steps,
        steps_run=step - loop.start,
        seconds=loop.timer.total,
        waited=loop.timer.waiting,
    )
