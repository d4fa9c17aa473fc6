"""The loop around a step: data, step, numbers, evaluation, checkpoints; resumed exactly.

`train` is one training: everything is put together, resumed, run to the end or to a signal, and
closed.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Arrays, Partition
from pyratok_jax.errors import UserError
from pyratok_jax.io.documents import refusing
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.models.language.fused_attention import attention_kernel
from pyratok_jax.training.checkpoints import Checkpoints
from pyratok_jax.training.distributed.coordinator import AheadOfTime, barrier
from pyratok_jax.training.distributed.heartbeat import Phase, report_phase
from pyratok_jax.training.distributed.sharding import make_mesh, parameter_shardings
from pyratok_jax.training.distributed.transfer import (
    ProcessAllGather,
    batch_to_mesh,
    data_shard,
    host_to_mesh,
)
from pyratok_jax.training.loop.contracts import Evaluator, Loader, ModelView, S, Task
from pyratok_jax.training.loop.metrics_log import MetricsLog, StepBar
from pyratok_jax.training.loop.monitoring import (
    CollapseGuard,
    Profiler,
    StepTimer,
    StopConsensus,
    StopSignal,
    over_processes,
    profiled_steps,
)
from pyratok_jax.training.loop.progress_page import ProgressPage
from pyratok_jax.training.loop.throughput import Throughput
from pyratok_jax.training.optimizer import make_optimizer
from pyratok_jax.training.registry import make_evaluators
from pyratok_jax.training.step import (
    Batch,
    Metrics,
    Step,
    TrainState,
    initial_state,
    make_train_step,
)

# Metrics of one step that no logged row holds yet: on devices, or as a checkpoint had them.
Unlogged = Mapping[str, ArrayLike]

DATA_ADVICE = "it is damaged; remove that checkpoint's folder to resume from an older one"


def place(
    partition: Partition[S], config: ConfigDict, mesh: Mesh
) -> tuple[TrainState, Arrays, optax.GradientTransformation]:
    """State at step 0, frozen arrays and optimizer, laid out on the mesh by its rules."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    params = host_to_mesh(partition.trainable, parameter_shardings(partition.trainable, mesh))
    frozen = host_to_mesh(partition.frozen, parameter_shardings(partition.frozen, mesh))

    def build(params: Arrays) -> TrainState:
        return initial_state(params, optimizer, config.ema_decay)

    shardings = parameter_shardings(jax.eval_shape(build, params), mesh)
    # The step donates its state: the state must not share buffers with the caller's arrays.
    state = jax.jit(build, out_shardings=shardings)(params)
    return state, frozen, optimizer


def plain_step(
    task: Task[S],
    partition: Partition[S],
    config: ConfigDict,
    optimizer: optax.GradientTransformation,
) -> Step:
    """The step `(state, frozen, batch, seed) -> (state, metrics)`, not jitted."""

    def loss(
        params: Arrays, frozen: Arrays, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        return task.loss(partition.merge(params, frozen), batch, key, progress)

    return make_train_step(
        loss,
        optimizer,
        steps=config.steps,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
        fused_attention=config.fused_attention,
    )


def jit_step(step: Step, state: TrainState) -> jax.stages.Wrapped:
    """The step with its state donated; the new state is sharded as `state` is."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


class Loop(Generic[S]):
    """The steps of one run, from the newest checkpoint on.

    Used as a context manager within `jax.set_mesh`, which ends logs and traces.

    Attributes:
        state: the newest.
        frozen: arrays that training does not change.
        start: step that this run began at.
        timer: of the steps of this run.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: AnyPath,
        task: Task[S],
        partition: Partition[S],
        mesh: Mesh,
        loader: Loader,
        checkpoints: Checkpoints,
        stop: StopSignal,
        evaluators: Sequence[Evaluator] = (),
    ):
        """Lay the model out on the mesh, restore the newest checkpoint, open the logs.

        Raises:
            UserError: the checkpoint does not fit, or the data cannot be resumed.
        """
        self._config, self._mesh, self._partition = config, mesh, partition
        self._evaluators = evaluators
        self._loader, self._checkpoints = loader, checkpoints
        with jax.set_mesh(mesh):
            state, self.frozen, optimizer = place(partition, config, mesh)
            step = plain_step(task, partition, config, optimizer)
            self._step: AheadOfTime[tuple[TrainState, Metrics]] = AheadOfTime(jit_step(step, state))
            self.state, self._unlogged = _restored(checkpoints, state, loader)
        self.start = int(self.state.step)
        primary = jax.process_index() == 0
        self._log = MetricsLog(workdir, start=self.start, primary=primary)
        self._log.write_settings(config)
        self._bar = StepBar(self.start, config.steps, enabled=primary)
        self._workdir = workdir
        self.timer = StepTimer()
        self.compiling = 0.0
        self._throughput = Throughput(step, mesh, config.steps)
        self._failure_told = False
        self._page = ProgressPage(workdir, config.steps, primary=primary)
        self._waits = ProcessAllGather(mesh)
        self._consensus = StopConsensus(stop, mesh)
        self._profiler = Profiler(profiled_steps(config.profile_steps), workdir)
        self._guard = CollapseGuard(**config.collapse)

    def __enter__(self) -> "Loop[S]":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)
        self._profiler.close()
        self._throughput.close()
        self._page.close(ended=not any(error))
        self._log.close()

    def run(self) -> None:
        """Step until the end or a signal, and save.

        Raises:
            UserError: the data cannot be read, or losses stay not finite.
        """
        self._report_start()
        if self.start < self._config.steps:
            self._bar.compiling()
        number, steps = self.start, self._config.steps
        barrier()
        if number >= steps:
            self._save()
        last = number >= steps
        while not last:
            number += 1
            metrics = self._take_step(number)
            last = self._consensus.must_stop() or number == steps
            if self._profiler.after(number, last, metrics):
                self._bar.say(f"profile of the steps: {self._profiler.folder}")
            if number % self._config.log_every == 0 or number == steps:
                self._log_means(number)
            self._evaluate(number)
            if last or self._checkpoints.due(number):
                report_phase(number, Phase.SAVING)
                self._save()
        if self._consensus.reason is not None:
            self._bar.say(
                f"{self._consensus.reason}: stopped after step {number}, checkpoint saved; the "
                "same command resumes from here"
            )

    def _report_start(self) -> None:
        if self.start:
            self._bar.say(f"resuming from step {self.start} in {self._workdir}")
            for key, (old, new) in self._checkpoints.changes.items():
                self._bar.say(f"changed on resuming: {key} was {old!r}, is {new!r}")

    def _take_step(self, number: int) -> Metrics:
        """Read a batch, start its step, and wait for the step before it."""
        first = number == self.start + 1
        self._profiler.before(number)
        begin = time.perf_counter()
        report_phase(number, Phase.FIRST_STEP if first else Phase.WAITING_FOR_DATA)
        batch = next(self._loader)
        data_wait = time.perf_counter() - begin
        arrays = batch_to_mesh(batch.arrays, self._mesh, batch.rows)
        inputs = (self.state, self.frozen, arrays, np.uint32(self._config.seed % 2**32))
        # The time limit of a step does not hold for compilation.
        compiled = not first and self._step.is_compiled(*inputs)
        report_phase(number, Phase.IN_STEP if compiled else Phase.FIRST_STEP)
        self._throughput.add(batch.rows, arrays, inputs)
        begin = time.perf_counter()
        self.state, metrics = self._step(*inputs)
        if first:
            self.compiling = time.perf_counter() - begin
        del inputs, arrays
        self._consensus.step_started()
        self._unlogged.append(metrics)
        # One step may run ahead, no more: Ctrl-C and progress must not wait for a long queue.
        begin = time.perf_counter()
        jax.block_until_ready(self._unlogged[-2:][0])
        self.timer.waited(data_wait, time.perf_counter() - begin)
        self.timer.step_done()
        self._bar.advance(number)
        return metrics

    def _log_means(self, number: int) -> None:
        """Log the means since the last time; stop when no step has been good for long.

        Raises:
            UserError: losses or gradients stay not finite.
        """
        values = jax.device_get(self._unlogged)
        means = {name: float(np.mean([np.float32(v[name]) for v in values])) for name in values[-1]}
        means["skipped_steps"] = float(values[-1]["skipped_steps"])
        means["skipped_clips"] = float(len(self._loader.broken))
        self._unlogged.clear()
        self._log.write(number, means)
        self._page.metrics(number, means)
        self._log_timing(number)
        self._page.write()
        self._bar.show(number, means)
        warning = self._guard.check(means)
        if warning is not None:
            self._bar.say(warning)
        bad = int(self.state.skipped_in_a_row)
        if bad >= self._config.max_bad_steps:
            terms = ", ".join(f"{k} {v:.3g}" for k, v in values[-1].items())
            raise UserError(
                f"loss or gradient was not finite for {bad} steps up to step {number} ({terms}); "
                "lower optimizer.learning_rate (with --config.resume_with_changes=true) or look at "
                "the term that is not finite. The checkpoints hold the last good parameters"
            )

    def _log_timing(self, number: int) -> None:
        window = self.timer.window()
        if window is not None:
            waits = self._waits.finish(self._waits.start(window[1]))
            rates = self._throughput.rates(number, window[0])
            timing = {"seconds_per_step": window[0], **rates, **over_processes(waits)}
            self._log.write_timing(number, timing)
            self._page.timing(number, timing)
            if self._throughput.failure and not self._failure_told:
                self._failure_told = True
                self._bar.say(f"MFU is not measured: {self._throughput.failure}")

    def _evaluate(self, number: int) -> None:
        """Run the evaluators that are due.

        Before the checkpoint of this step is saved: a run resumed from it has their rows already.
        """
        due = [
            evaluator
            for evaluator in self._evaluators
            if number % evaluator.every == 0 or number == self._config.steps
        ]
        if not due:
            return
        params = self.state.ema or self.state.params
        view = ModelView(self._mesh, self._partition, params, self.frozen)
        with self.timer.paused():
            for evaluator in due:
                report_phase(number, Phase.EVALUATING)
                found = evaluator.run(view, number)
                self._log.write_evaluation(number, evaluator.name, found)
                self._page.evaluation(number, evaluator.name, found)
                self._bar.say_metrics(evaluator.name, number, found.metrics)
            self._page.write()

    def _save(self) -> None:
        self._log.flush()
        # As text of all bits: the row that these become must be the one of an unbroken run.
        unlogged = [
            {name: float(value).hex() for name, value in values.items()}
            for values in jax.device_get(self._unlogged)
        ]
        self._checkpoints.save(
            self.state,
            {
                "loader": dict(self._loader.get_state()),
                "pending": unlogged,
                "broken": dict(self._loader.broken),
            },
        )


def _restored(
    checkpoints: Checkpoints, state: TrainState, loader: Loader
) -> tuple[TrainState, list[Unlogged]]:
    """State and unlogged metrics of the newest checkpoint, if there is one; the loader's is set."""
    found = checkpoints.restore(state)
    if found is None:
        return state, []
    state, rest = found
    # A data state that is damaged must not be resumed from: other batches would follow.
    with refusing(f"the data state of the checkpoint of step {int(state.step)}", DATA_ADVICE):
        step = int(rest["loader"].get("step", state.step))
        if step != int(state.step):
            raise ValueError(f"its step is {step}")
        loader.set_state(rest["loader"])
        loader.broken.update(rest["broken"])
        return state, [
            {name: np.float32(float.fromhex(value)) for name, value in values.items()}
            for values in rest["pending"]
        ]


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
        compiling: seconds in which the step was traced and compiled, or found compiled.
    """

    state: TrainState
    frozen: Arrays
    partition: Partition[S]
    finished: bool
    steps_run: int
    seconds: float
    waited: float
    compiling: float


def train(
    config: ConfigDict,
    workdir: AnyPath,
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
        # Of evaluators too; the step has it by itself.
        with jax.set_mesh(mesh), attention_kernel(config.fused_attention), loop:
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
        compiling=loop.compiling,
    )
