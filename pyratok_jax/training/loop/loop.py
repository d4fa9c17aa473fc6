"""The training loop: data, step, numbers, checkpoints; interrupted anywhere, resumed exactly."""

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Arrays, Partition
from pyratok_jax.data.buckets import parse_buckets
from pyratok_jax.errors import UserError
from pyratok_jax.training.checkpoints import Checkpoints
from pyratok_jax.training.distributed.compile_barrier import CompiledTogether, meet
from pyratok_jax.training.distributed.feeding import Exchange, Share, data_share, spread, to_mesh
from pyratok_jax.training.distributed.heartbeat import doing
from pyratok_jax.training.distributed.sharding import make_mesh, parameter_shardings
from pyratok_jax.training.loop.collapse import CollapseGuard
from pyratok_jax.training.loop.metrics_log import MetricsLog, StepBar
from pyratok_jax.training.loop.profiling import Profiler, profiled_steps
from pyratok_jax.training.loop.stopping import StopSignal, StopVote
from pyratok_jax.training.loop.timing import Times, over_processes
from pyratok_jax.training.optimizer import make_optimizer
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


def place(partition: Partition, config: ConfigDict, mesh: Mesh) -> tuple[TrainState, Arrays, Any]:
    """State at step 0, frozen arrays and optimizer, laid out on the mesh by its rules."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    params = spread(partition.trainable, parameter_shardings(partition.trainable, mesh))
    frozen = spread(partition.frozen, parameter_shardings(partition.frozen, mesh))

    def build(params: Arrays) -> TrainState:
        return initial_state(params, optimizer, config.ema_decay)

    shardings = parameter_shardings(jax.eval_shape(build, params), mesh)
    # The step donates its state: the state must not share buffers with the caller's arrays.
    state = jax.jit(build, out_shardings=shardings)(params)
    return state, frozen, optimizer


def jit_step(
    task: Task, partition: Partition, config: ConfigDict, optimizer: Any, state: Any
) -> Any:
    """The compiled-on-first-use step `(state, frozen, batch, seed) -> (state, metrics)`."""

    def loss(params: Arrays, frozen: Arrays, batch: Any, key: Any, progress: Any) -> Any:
        return task.loss(partition.merge(params, frozen), batch, key, progress)

    step = make_train_step(
        loss,
        optimizer,
        steps=config.steps,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def train(config: ConfigDict, workdir: Path, task: Task, *, on_start: Any = None) -> Trained:
    """Train to `config.steps`, going on from the newest checkpoint in `workdir`.

    `on_start(partition)` is called once before a training that begins at step 0 and may change
    the partition's trainable arrays (a data-dependent start); in each process, alike.

    Raises:
        UserError: an impossible setting, unreadable data, a loss that stays not finite.
    """
    profiled = profiled_steps(config.profile_steps)
    # An impossible setting shows before the levels are fitted, not after.
    make_optimizer(config.optimizer, config.steps)
    # Processes may have been long apart while they read weights; the checkpoints' manager begins
    # with a collective operation.
    meet()
    checkpoints = Checkpoints(workdir, config)
    mesh = make_mesh(config.mesh)
    shares = _shares(config, mesh)
    partition = Partition(task.system, task.is_trainable)
    loader = _loader(task, shares, mesh)
    with StopSignal() as stop:
        if on_start is not None and checkpoints.newest() is None:
            on_start(partition)
        with jax.set_mesh(mesh):
            state, frozen, optimizer = place(partition, config, mesh)
            state, pending = _restored(checkpoints, state, loader)
            start = int(state.step)
            primary = jax.process_index() == 0
            log = MetricsLog(workdir, start=start, primary=primary)
            step = CompiledTogether(jit_step(task, partition, config, optimizer, state))
            times, vote = Times(), StopVote(stop, mesh)
            exchange, profiler = Exchange(mesh), Profiler(profiled, workdir)
            try:
                with StepBar(start, config.steps, enabled=primary) as bar:
                    if start:
                        bar.say(f"resuming from step {start} in {workdir}")
                        for key, (old, new) in checkpoints.changes.items():
                            bar.say(f"changed on resuming: {key} was {old!r}, is {new!r}")
                    run = _Run(config, task, mesh, shares, step, frozen, loader, checkpoints,
                               log, bar, vote, times, exchange, profiler,
                               CollapseGuard(**config.collapse))  # fmt: skip
                    state = run.steps(state, pending)
            finally:
                profiler.close()
                checkpoints.close()
                log.close()
                loader.close()
    done = int(state.step)
    finished = done >= config.steps
    return Trained(state, frozen, partition, finished, done - start, times.total, times.waiting)


def _shares(config: ConfigDict, mesh: Mesh) -> dict[str, Share]:
    """What this process reads of the batches of each bucket; of all batches where none is named."""
    buckets = parse_buckets(config.data.get("buckets", ()) or ("1x8x8",))
    return {bucket.name: data_share(mesh, bucket.clips or config.batch_size) for bucket in buckets}


def _loader(task: Task, shares: dict[str, Share], mesh: Mesh) -> Any:
    """The task's batches. A task with an attribute `share_of` reads each bucket in its own parts.

    Raises:
        UserError: the buckets differ in that, and the task has no such attribute.
    """
    share = next(iter(shares.values()))
    if hasattr(task, "share_of"):
        task.share_of = functools.partial(data_share, mesh)
    elif len(set(shares.values())) > 1:
        counts = ", ".join(f"{name}: {share.parts}" for name, share in shares.items())
        raise UserError(
            f"the processes would read these buckets in unlike parts ({counts}); give them batches "
            "that split alike over config.mesh"
        )
    return task.make_loader(*share)


def _restored(
    checkpoints: Checkpoints, state: TrainState, loader: Any
) -> tuple[TrainState, list[Metrics]]:
    """State, data and unlogged metrics as the newest checkpoint has them, if there is one."""
    found = checkpoints.restore(state)
    if found is None:
        return state, []
    state, rest = found
    loader.set_state(rest.get("loader", rest))
    loader.broken.update(rest.get("broken", {}))
    return state, [
        {name: np.float32(float.fromhex(value)) for name, value in values.items()}
        for values in rest.get("pending", [])
    ]


class _Run(NamedTuple):
    """The parts of a running loop."""

    config: ConfigDict
    task: Task
    mesh: Mesh
    shares: dict[str, Share]
    step: CompiledTogether
    frozen: Arrays
    loader: Any
    checkpoints: Checkpoints
    log: MetricsLog
    bar: StepBar
    vote: StopVote
    times: Times
    exchange: Exchange
    profiler: Profiler
    guard: CollapseGuard

    def steps(self, state: TrainState, pending: list[Metrics]) -> TrainState:
        """Step until the end or a signal; `pending` are metrics of steps not logged yet."""
        number, what = int(state.step), "first step"
        meet()
        if number >= self.config.steps:
            self._save(state, pending)
        while number < self.config.steps:
            number += 1
            self.profiler.before(number)
            asked = time.perf_counter()
            doing(number, what if what == "first step" else "waiting for data")
            read = next(self.loader)
            batch = self.task.device_batch(read)
            data_wait = time.perf_counter() - asked
            share = self.shares.get(read.get("bucket")) or next(iter(self.shares.values()))
            placed = to_mesh(batch, self.mesh, share.parts)
            inputs = (state, self.frozen, placed, np.uint32(self.config.seed % 2**32))
            # The time limit of a step is not one of compilation.
            doing(number, what if self.step.knows(*inputs) else "first step")
            state, metrics = self.step(*inputs)
            del inputs, placed
            self.vote.step_started()
            pending.append(metrics)
            # One step may run ahead, no more: Ctrl-C and progress must not wait for a long queue.
            asked = time.perf_counter()
            jax.block_until_ready(pending[-2:][0])
            self.times.waited(data_wait, time.perf_counter() - asked)
            self.times.step_done()
            what = "in the step"
            self.bar.advance(number)
            last = self.vote.must_stop() or number == self.config.steps
            if self.profiler.after(number, last, metrics):
                self.bar.say(f"profile of the steps: {self.profiler.folder}")
            if number % self.config.log_every == 0 or number == self.config.steps:
                self._log(number, pending, state)
            if last or self.checkpoints.due(number):
                doing(number, "saving a checkpoint")
                self._save(state, pending)
            if last:
                break
        if self.vote.reason is not None:
            self.bar.say(
                f"{self.vote.reason}: stopped after step {number}, checkpoint saved; the same "
                "command goes on from here"
            )
        return state

    def _log(self, number: int, pending: list[Metrics], state: TrainState) -> None:
        """Write the means since the last time; stop when nothing good has come for long."""
        values = jax.device_get(pending)
        means = {name: float(np.mean([np.float32(v[name]) for v in values])) for name in values[-1]}
        means["skipped_steps"] = float(values[-1]["skipped_steps"])
        means["skipped_clips"] = float(len(self.loader.broken))
        pending.clear()
        self.log.write(number, means)
        self._log_timing(number)
        self.bar.show(number, means)
        warning = self.guard.check(means)
        if warning is not None:
            self.bar.say(warning)
        bad = int(state.skipped_in_a_row)
        if bad >= self.config.max_bad_steps:
            terms = ", ".join(f"{k} {v:.3g}" for k, v in values[-1].items())
            raise UserError(
                f"loss or gradient was not finite for {bad} steps up to step {number} ({terms}); "
                "lower optimizer.learning_rate (with --config.resume_with_changes=true) or look at "
                "the term that is not finite. The checkpoints hold the last good parameters"
            )

    def _log_timing(self, number: int) -> None:
        window = self.times.window()
        if window is not None:
            waits = self.exchange.receive(self.exchange.send(window[1]))
            self.log.write_timing(number, {"seconds_per_step": window[0], **over_processes(waits)})

    def _save(self, state: TrainState, pending: list[Metrics]) -> None:
        # As text of all bits: the row that these become must be the one of an unbroken run.
        unlogged = [
            {name: float(value).hex() for name, value in values.items()}
            for values in jax.device_get(pending)
        ]
        rest = {"loader": self.loader.get_state(), "pending": unlogged}
        self.checkpoints.save(state, rest | {"broken": dict(self.loader.broken)})
