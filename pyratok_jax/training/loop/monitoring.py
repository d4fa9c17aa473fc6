"""Stopping and watching a training.

Ctrl-C and SIGTERM (preemption) stop all processes of a run after the same step. Watched are
codebook collapse and time per step by process; profiler traces and XLA dumps are taken on demand.
"""

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pyratok_jax.errors import UserError
from pyratok_jax.io.mirror import Mirror
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.training.distributed.coordinator import INDEX
from pyratok_jax.training.distributed.transfer import ProcessAllGather

STOPPING = "stopping after the next step; press Ctrl-C again to quit now, without a checkpoint"
Handler = Callable[[int, FrameType | None], object] | int | None


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step in progress."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._old: dict[int, Handler] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        # Written, not printed: a print that the signal interrupted must not be entered again.
        os.write(2, f"\n{self.received}: {STOPPING}\n".encode())

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class StopConsensus:
    """Whether any process was asked to stop, agreed on by all of them at the same step.

    A signal may reach one process alone, or several at different steps, and a process that left
    early would leave the others waiting in a collective operation. So every step is followed by an
    all-gather of the requests. Its result is read one step later, when it is there anyway, so that
    no step waits for it.
    """

    def __init__(self, stop: StopSignal, mesh: Mesh):
        self._stop = stop
        self._gather = ProcessAllGather(mesh) if jax.process_count() > 1 else None
        self._started: list[Array] = []
        self.reason: str | None = None

    def step_started(self) -> None:
        """To be called once after each step was dispatched."""
        if self._gather is not None:
            self._started.append(self._gather.start([self._stop.received is not None]))

    def must_stop(self) -> bool:
        """To be called once at the end of each step."""
        if self._gather is None:
            self.reason = self._stop.received
        elif len(self._started) > 1 and self._gather.finish(self._started.pop(0)).any():
            self.reason = self._stop.received or "a signal to another process"
        return self.reason is not None


COLLAPSE_PREFIX = "distinct/level_"
# What a process measures of a step, in this order.
MEASURED = ("data_wait", "device_wait")


class CollapseGuard:
    """Warns when a level stops using its codebook.

    It looks at the share of distinct codes of each level (`metrics.training_usage`). A level whose
    share stays under the threshold for several logged steps in a row has collapsed, or is about to:
    its tokens are the same everywhere.
    """

    def __init__(self, threshold: float, patience: int):
        """Warn after `patience` logged values in a row under `threshold`; 0 never warns."""
        self.threshold, self.patience = threshold, patience
        self._low: dict[str, int] = {}

    def check(self, metrics: Mapping[str, float]) -> str | None:
        """A warning to print, or None; a level that recovers and falls again is named again."""
        fallen = []
        for name, value in metrics.items():
            if name.startswith(COLLAPSE_PREFIX):
                self._low[name] = self._low.get(name, 0) + 1 if value < self.threshold else 0
                if self._low[name] == self.patience > 0:
                    fallen.append(f"level {name.removeprefix(COLLAPSE_PREFIX)} ({value:.1%})")
        if not fallen:
            return None
        return (
            f"codebook collapse: the share of different codes stays under {self.threshold:.1%} in "
            f"{', '.join(fallen)}; raise loss.weights.entropy or lower optimizer.learning_rate"
        )


class StepTimer:
    """Seconds of this process, in all and since the last logged step, without the first step.

    The first step compiles.

    Attributes:
        total: of all steps after the first.
        waiting: of these, seconds in which the loop waited for a batch.
    """

    def __init__(self) -> None:
        self.total = self.waiting = 0.0
        self._begin: float | None = None
        self._logged: float | None = None
        self._steps, self._waits = 0, np.zeros(len(MEASURED))

    def waited(self, data: float, device: float) -> None:
        """Of the step in progress: seconds spent waiting for its batch and for the devices."""
        if self._begin is not None:
            self.waiting += data
            self._waits += (data, device)
            self._steps += 1

    def step_done(self) -> None:
        """A step is over; counting starts after the first."""
        now = time.perf_counter()
        if self._begin is None:
            self._begin = self._logged = now
        self.total = now - self._begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what the block takes."""
        begin = time.perf_counter()
        yield
        taken = time.perf_counter() - begin
        if self._begin is not None and self._logged is not None:
            self._begin, self._logged = self._begin + taken, self._logged + taken

    def window(self) -> tuple[float, list[float]] | None:
        """Seconds per step and the waits per step since the last call; None after no steps."""
        if self._logged is None or not self._steps:
            return None
        now = time.perf_counter()
        seconds, waits = (now - self._logged) / self._steps, self._waits / self._steps
        self._logged, self._steps, self._waits = now, 0, np.zeros(len(MEASURED))
        return seconds, [float(x) for x in waits]


def over_processes(waits: Float[np.ndarray, "processes measured"]) -> dict[str, float]:
    """Minimum and maximum over the processes of each measured wait, in seconds per step.

    With several processes also `slowest_process`: the one that waits least for the devices, since
    the others wait for it there.
    """
    found: dict[str, float] = {}
    for number, name in enumerate(MEASURED):
        found[f"{name}_min"] = float(waits[:, number].min())
        found[f"{name}_max"] = float(waits[:, number].max())
    if len(waits) > 1:
        found["slowest_process"] = float(np.argmin(waits[:, MEASURED.index("device_wait")]))
    return found


def profiled_steps(text: str) -> range:
    """The steps that "10:15" names (10 to 15, both included); empty for an empty text.

    Raises:
        UserError: not two step numbers in order.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(
            f"--profile_steps {text}: expected FIRST:LAST with 1 <= FIRST <= LAST, such as 10:15"
        )
    return range(int(match[1]), int(match[2]) + 1)


class Profiler:
    """Writes a trace of the wanted steps into the working folder."""

    def __init__(self, steps: range, workdir: AnyPath):
        self.folder = workdir / "profile"
        if jax.process_count() > 1:
            self.folder /= f"process_{jax.process_index()}"
        self._steps, self._running = steps, False
        self._mirror: Mirror | None = None

    def before(self, step: int) -> None:
        """Begin, if this step is the first one wanted (or a resumed run's first among them)."""
        if step in self._steps and not self._running:
            self._mirror = Mirror(self.folder)
            jax.profiler.start_trace(str(self._mirror.folder))
            self._running = True

    def after(self, step: int, last: bool, result: object) -> bool:
        """End after the last wanted step or the run's last; True when a trace was written."""
        if not self._running or (step + 1 in self._steps and not last):
            return False
        jax.block_until_ready(result)
        self.close()
        return True

    def close(self) -> None:
        """End a trace that is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
        if self._mirror is not None:
            self._mirror.close()
            self._mirror = None


def dump_programs(folder: str) -> Path | None:
    """Let XLA write every program it compiles into a folder of this process; None without one.

    Must be called before the first computation.

    Raises:
        UserError: the folder cannot be made.
    """
    if not folder:
        return None
    name = f"process_{os.environ[INDEX]}" if INDEX in os.environ else socket.gethostname()
    path = Path(folder).absolute() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--xla_dump_to {folder}: {error.strerror}; name a folder") from error
    flags = f"--xla_dump_to={path} --xla_dump_hlo_as_text"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return path
