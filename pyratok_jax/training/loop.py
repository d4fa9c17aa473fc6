"""The training loop: data, step, numbers, checkpoints; interrupted anywhere, resumed exactly."""

import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.errors import UserError
from pyratok_jax.training.checkpoints import Checkpoints
from pyratok_jax.training.metrics import MetricsLog, StepBar
from pyratok_jax.training.optimizer import make_optimizer
from pyratok_jax.training.partition import Arrays, Partition
from pyratok_jax.training.sharding import make_mesh, parameter_shardings, to_mesh
from pyratok_jax.training.step import Metrics, TrainState, initial_state, make_train_step


class Task(Protocol):
    """What is trained: a module, its loss and its data."""

    @property
    def system(self) -> nnx.Module:
        """The module, with its first weights."""

    def is_trainable(self, name: str, variable: nnx.Variable) -> bool:
        """Whether training changes a variable."""

    def make_loader(self, index: int, count: int) -> Any:
        """Batches of host `index` of `count`, with get_state, set_state and close."""

    def device_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Of a batch, the arrays that the step reads."""

    def loss(
        self, system: Any, batch: Mapping[str, Array], key: PRNGKeyArray, progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Scalar loss, and its terms to log."""


class Trained(NamedTuple):
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
    partition: Partition
    finished: bool
    steps_run: int
    seconds: float
    waited: float


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step in progress."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def place(partition: Partition, config: ConfigDict, mesh: Mesh) -> tuple[TrainState, Arrays, Any]:
    """State at step 0, frozen arrays and optimizer, laid out on the mesh by its rules."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    params = jax.device_put(partition.trainable, parameter_shardings(partition.trainable, mesh))
    frozen = jax.device_put(partition.frozen, parameter_shardings(partition.frozen, mesh))

    def build(params: Arrays) -> TrainState:
        return initial_state(params, optimizer, config.ema_decay)

    shardings = parameter_shardings(jax.eval_shape(build, params), mesh)
    # The step donates its state: the state must not share buffers with the caller's arrays.
    state = jax.jit(build, out_shardings=shardings)(params)
    return state, frozen, optimizer


def jit_step(
    task: Task, partition: Partition, config: ConfigDict, optimizer: Any, state: Any
) -> Any:
    """The compiled-on-first-use step `(state, frozen, batch) -> (state, metrics)`."""

    def loss(params: Arrays, frozen: Arrays, batch: Any, key: Any, progress: Any) -> Any:
        return task.loss(partition.merge(params, frozen), batch, key, progress)

    step = make_train_step(
        loss,
        optimizer,
        steps=config.steps,
        seed=config.seed,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def train(config: ConfigDict, workdir: Path, task: Task, *, on_start: Any = None) -> Trained:
    """Train to `config.steps`, going on from the newest checkpoint in `workdir`.

    `on_start(partition)` is called once before a training that begins at step 0 and may change
    the partition's trainable arrays (a data-dependent start).

    Raises:
        UserError: an impossible setting, unreadable data, a loss that stays not finite.
    """
    checkpoints = Checkpoints(workdir, config)
    mesh = make_mesh(config.mesh)
    partition = Partition(task.system, task.is_trainable)
    loader = task.make_loader(jax.process_index(), jax.process_count())
    primary = jax.process_index() == 0
    with jax.set_mesh(mesh), StopSignal() as stop:
        state, frozen, optimizer = place(partition, config, mesh)
        restored = checkpoints.restore(state)
        if restored is not None:
            state, position = restored
            loader.set_state(position)
        elif on_start is not None and on_start(partition):
            state, frozen, optimizer = place(partition, config, mesh)
        start = int(state.step)
        step = jit_step(task, partition, config, optimizer, state)
        log = MetricsLog(workdir, start=start, primary=primary)
        times = Times()
        try:
            with StepBar(start, config.steps, enabled=primary) as bar:
                if start:
                    bar.say(f"going on from step {start} in {workdir}")
                run = _Run(
                    config, task, mesh, step, frozen, loader, checkpoints, log, bar, stop, times
                )
                state = run.steps(state)
            _save(checkpoints, state, loader)
        finally:
            checkpoints.close()
            log.close()
            loader.close()
    done = int(state.step)
    finished = done >= config.steps
    return Trained(state, frozen, partition, finished, done - start, times.total, times.waiting)


class Times:
    """How long steps took, and how long of that the loop stood waiting for data."""

    def __init__(self) -> None:
        self.total = self.waiting = 0.0
        self._begin: float | None = None

    def waited_since(self, moment: float) -> None:
        """A batch has arrived that was asked for at `moment`."""
        if self._begin is not None:
            self.waiting += time.perf_counter() - moment

    def step_done(self) -> None:
        """A step is over; counting starts after the first."""
        now = time.perf_counter()
        self._begin = self._begin or now
        self.total = now - self._begin


class _Run(NamedTuple):
    """The parts of a running loop."""

    config: ConfigDict
    task: Task
    mesh: Mesh
    step: Any
    frozen: Arrays
    loader: Any
    checkpoints: Checkpoints
    log: MetricsLog
    bar: StepBar
    stop: StopSignal
    times: Times

    def steps(self, state: TrainState) -> TrainState:
        """Step until the end or a signal."""
        pending: list[Metrics] = []
        number = int(state.step)
        while number < self.config.steps and self.stop.received is None:
            asked = time.perf_counter()
            batch = self.task.device_batch(next(self.loader))
            self.times.waited_since(asked)
            state, metrics = self.step(state, self.frozen, to_mesh(batch, self.mesh))
            number += 1
            pending.append(metrics)
            # One step may run ahead, no more: Ctrl-C and progress must not wait for a long queue.
            jax.block_until_ready(pending[-2:][0])
            self.times.step_done()
            self.bar.advance(number)
            if number % self.config.log_every == 0 or number == self.config.steps:
                self._log(number, pending, state)
            if self.checkpoints.due(number):
                _save(self.checkpoints, state, self.loader)
        if self.stop.received is not None:
            self.bar.say(
                f"{self.stop.received}: stopped after step {number}, checkpoint saved; the same "
                "command goes on from here"
            )
        return state

    def _log(self, number: int, pending: list[Metrics], state: TrainState) -> None:
        """Write the means since the last time; stop when nothing good has come for long."""
        values = jax.device_get(pending)
        means = {name: float(np.mean([v[name] for v in values])) for name in values[-1]}
        means["skipped_steps"] = float(values[-1]["skipped_steps"])
        means["skipped_clips"] = float(len(self.loader.broken))
        pending.clear()
        self.log.write(number, means)
        self.bar.show(number, means)
        bad = int(state.skipped_in_a_row)
        if bad >= self.config.max_bad_steps:
            terms = ", ".join(f"{k} {v:.3g}" for k, v in values[-1].items())
            raise UserError(
                f"loss or gradient was not finite for {bad} steps up to step {number} ({terms}); "
                "lower optimizer.learning_rate or look at the term that is not finite. The "
                "checkpoints hold the last good parameters"
            )


def _save(checkpoints: Checkpoints, state: TrainState, loader: Any) -> None:
    checkpoints.save(state, loader.get_state())
