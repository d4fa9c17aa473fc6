"""Heartbeats: when one process of a run is lost, all others end and name it.

Without them the others would wait in a collective operation until a time limit of the runtime,
whose message names no host. Each process writes a heartbeat (a counter, its host, its step and its
phase) to the key-value store of the coordination service and reads those of the others. All end
when

- a process reports that it failed, or its heartbeat is missing for `silence` seconds;
- a step takes longer than `step_limit` seconds: the processes furthest behind are then named;
- the service (process 0) cannot be reached. JAX aborts a process that finds this first, so a
  handler of SIGABRT prints the reason.
"""

import contextlib
import ctypes
import enum
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn, TypedDict

import jax

from pyratok_jax.errors import EXIT_HOST_LOST, EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from pyratok_jax.training.distributed.coordinator import Coordinator, coordinator

_PREFIX = "pyratok/heartbeat/"
_RESUME = "the same command resumes from the last checkpoint"


class Phase(enum.StrEnum):
    """What a process is doing, as messages name it."""

    STARTING = "starting"
    FIRST_STEP = "first step"
    WAITING_FOR_DATA = "waiting for data"
    IN_STEP = "in the step"
    SAVING = "saving a checkpoint"
    EVALUATING = "evaluating"
    FINISHING = "finishing"


# Phases without a time limit: they compile, measure, or write the report.
UNTIMED = (Phase.STARTING, Phase.FIRST_STEP, Phase.EVALUATING, Phase.FINISHING)


class Beat(TypedDict):
    """One heartbeat, as it is stored in JSON; `n` counts them."""

    n: int
    host: str
    step: int
    phase: str


class Peer:
    """What is known of one process: its latest heartbeat, and when that arrived."""

    def __init__(self) -> None:
        self.beat = Beat(n=0, host="an unknown host", step=0, phase=Phase.STARTING)
        self.arrived = time.monotonic()

    def receive(self, text: str) -> None:
        """Take what is stored; the same heartbeat as before is no sign of life."""
        beat: Beat = json.loads(text)
        if beat != self.beat:
            self.beat, self.arrived = beat, time.monotonic()


class Heartbeat:
    """The thread of one process that sends its heartbeat and checks those of the others."""

    def __init__(self, service: Coordinator, silence: float, step_limit: float):
        self.index = service.index
        self._service, self._silence, self._step_limit = service, silence, step_limit
        self._interval = min(max(silence / 10, 0.2), 5.0)
        self._peers = {i: Peer() for i in range(service.count)}
        self._step, self._phase, self._since = 0, Phase.STARTING, time.monotonic()
        self._number = 0
        self._over = threading.Event()
        self._abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def start(self) -> None:
        """Begin to send and to check."""
        # A Python handler would run too late: only code called by the signal itself comes before
        # the end of the process.
        ctypes.CDLL(None).signal(signal.SIGABRT, self._abort_handler)
        self._thread.start()

    def report(self, step: int, phase: Phase) -> None:
        """Note what this process is doing from now on."""
        self._step, self._phase, self._since = step, phase, time.monotonic()

    def _run(self) -> None:
        while not self._over.wait(self._interval if self._number else 0.0):
            try:
                self._send()
                reason = self._reason(dict(self._service.client.key_value_dir_get(_PREFIX)))
            except Exception as error:  # Whatever it is, no process must be left alone.
                if self._over.is_set():
                    return
                reason = (f"{self.name(0)} cannot be reached ({_first_line(error)})", 0)
            if reason is not None:
                self._end(*reason)

    def _send(self) -> None:
        self._number += 1
        beat = Beat(n=self._number, host=socket.gethostname(), step=self._step, phase=self._phase)
        self._service.client.key_value_set(f"{_PREFIX}beat/{self.index}", json.dumps(beat), True)

    def _reason(self, entries: dict[str, str]) -> tuple[str, int] | None:
        """Why the run must end, and the exit code for it (0: that of a lost host)."""
        for key, text in entries.items():
            if key.startswith(f"{_PREFIX}beat/"):
                self._peers[int(key.rpartition("/")[2])].receive(text)
        for key, text in entries.items():
            if key.startswith(f"{_PREFIX}end/") and key != f"{_PREFIX}end/{self.index}":
                found = json.loads(text)
                return found["message"], found["code"]
        now = time.monotonic()
        for i, peer in self._peers.items():
            if i != self.index and now - peer.arrived > self._silence:
                return f"{self.name(i)} was not heard of for {self._silence:g} s{self._at(i)}", 0
        if self._phase not in UNTIMED and 0 < self._step_limit < now - self._since:
            return self._stuck(), 0
        return None

    def _stuck(self) -> str:
        """Name the processes that the others wait for: furthest behind, not in the step yet."""
        beats = {i: peer.beat for i, peer in self._peers.items()}
        last = min(beat["step"] for beat in beats.values())
        behind = [i for i, beat in beats.items() if beat["step"] == last]
        outside = [i for i in behind if beats[i]["phase"] != Phase.IN_STEP]
        names = ", ".join(self.name(i) + self._at(i) for i in outside or behind)
        return f"no step was done for {self._step_limit:g} s, behind is {names}"

    def name(self, index: int) -> str:
        """A process with its host."""
        return f"process {index} on {self._peers[index].beat['host']}"

    def _at(self, index: int) -> str:
        beat = self._peers[index].beat
        return f" (step {beat['step']}, {beat['phase']})"

    def _end(self, message: str, code: int) -> NoReturn:
        """Tell the others, say why, and end this process."""
        text = f"{message}; {_RESUME}" if _RESUME not in message and not code else message
        self._publish(text, code)
        _say(f"error: process {self.index} ends: {text}")
        self._linger()
        os._exit(code or EXIT_HOST_LOST)

    def _publish(self, message: str, code: int) -> None:
        with contextlib.suppress(Exception):  # Without a coordinator there is nobody to tell.
            value = json.dumps({"message": message, "code": code})
            self._service.client.key_value_set(f"{_PREFIX}end/{self.index}", value, True)

    def _linger(self) -> None:
        """Process 0 must outlive the others' next check, or they would report it as lost."""
        if self.index == 0:
            time.sleep(2 * self._interval + 1.0)

    def fail(self, error: BaseException) -> NoReturn:
        """End everything because of an error in this process."""
        if _is_from_runtime(error):
            # More likely another process is gone. The heartbeats will tell which.
            self._silence = min(self._silence, 5 * self._interval + 1.0)
            time.sleep(self._silence + 2 * self._interval + 1.0)
        self._over.set()
        code = 1
        if isinstance(error, UserError | KeyboardInterrupt):
            code = EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_INTERRUPTED
        else:
            traceback.print_exception(error, file=sys.stderr)
        reason = _first_line(error)
        host = f"process {self.index} on {socket.gethostname()}"
        # A mistake of the user is no reason to try again.
        self._publish(f"{host} failed: {reason}", EXIT_USER_ERROR if code == EXIT_USER_ERROR else 0)
        _say(f"error: {host} failed: {reason}")
        self._linger()
        os._exit(code)

    def leave(self) -> None:
        """Wait until all processes are done (process 0 writes the report), and stop checking."""
        self.report(self._step, Phase.FINISHING)
        self._service.wait("pyratok/done")
        self._over.set()
        self._thread.join()
        ctypes.CDLL(None).signal(signal.SIGABRT, None)

    def _aborted(self, number: int) -> None:
        """JAX found the run broken. Runs inside the abort."""
        host, _, port = self._service.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
            reason = "JAX lost another process"
        except (OSError, ValueError):
            reason = f"{self.name(0)}, which runs the coordination service, is gone"
        _say(f"error: process {self.index} ends: {reason}; {_RESUME}")
        os._exit(EXIT_HOST_LOST)


_current: Heartbeat | None = None


def report_phase(step: int, phase: Phase) -> None:
    """Note what this process is doing from now on; nothing outside of `heartbeats`."""
    if _current is not None:
        _current.report(step, phase)


@contextlib.contextmanager
def heartbeats(silence: float, step_limit: float) -> Iterator[None]:
    """Run a training under heartbeats; an error in it ends all processes (this one at once).

    Nothing for a process that is alone.

    Args:
        silence: seconds without a heartbeat after which a process counts as lost.
        step_limit: seconds that a step, its data and its checkpoint may take; 0: any time.
    """
    global _current
    service = coordinator()
    if service is None:
        yield
        return
    _current = heartbeat = Heartbeat(service, silence, step_limit)
    heartbeat.start()
    try:
        yield
        heartbeat.leave()
    except BaseException as error:
        heartbeat.fail(error)
    finally:
        _current = None


def _is_from_runtime(error: BaseException) -> bool:
    """Whether an error may come from a broken connection to another process."""
    words = ("Gloo", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "heartbeat", "coordination")
    known = isinstance(error, jax.errors.JaxRuntimeError)
    return known or (isinstance(error, ValueError) and any(word in str(error) for word in words))


def _first_line(error: BaseException) -> str:
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _say(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(2, f"{text}\n".encode())
