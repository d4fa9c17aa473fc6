"""Ctrl-C and SIGTERM (preemption): all processes of a run stop after the same step."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

import jax
from jax.sharding import Mesh
from jaxtyping import Array

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
