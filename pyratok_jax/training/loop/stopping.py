"""Ctrl-C and SIGTERM: all processes of a run stop after the same step."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.sharding import Mesh

from pyratok_jax.training.distributed.feeding import Exchange


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


class StopVote:
    """Whether any process was asked to stop, known to all of them at the same step.

    A signal may reach one process alone or several at different steps, and a process that leaves
    early would leave the others waiting in a step for ever. Each step therefore carries the
    requests along, as a computation of its own; its result is read a step later, when it is there
    anyway, so that no step waits for it.
    """

    def __init__(self, stop: StopSignal, mesh: Mesh):
        self._stop = stop
        self._exchange = Exchange(mesh) if jax.process_count() > 1 else None
        self._sent: list[jax.Array] = []
        self.reason: str | None = None

    def step_started(self) -> None:
        """Once after each step was begun."""
        if self._exchange is not None:
            self._sent.append(self._exchange.send([self._stop.received is not None]))

    def must_stop(self) -> bool:
        """Once at the end of each step."""
        if self._exchange is None:
            self.reason = self._stop.received
        elif len(self._sent) > 1 and self._exchange.receive(self._sent.pop(0)).any():
            self.reason = self._stop.received or "a signal to another process"
        return self.reason is not None
