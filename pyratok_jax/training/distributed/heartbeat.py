"""The processes of one run watch each other: when one is lost, all end, and say which it was.

Without this the others would wait in a collective operation until a time limit of the runtime,
whose message names no host. Each process writes a beat (a counter, its host, its step and what it
is doing) into the key-value store of JAX's coordinator and reads those of the others. All end when

- a process reports that it failed, or has not been heard of for `silence` seconds;
- a step takes longer than `step_limit` seconds: then the processes furthest behind are named;
- the coordinator (process 0) cannot be reached, on which JAX aborts the process: a handler of
  that abort says so before.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed  # The key-value store has no public name.

from pyratok_jax.errors import EXIT_HOST_LOST, EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError

_PREFIX = "pyratok/watch/"
_REPORT_SECONDS = 24 * 3600
# Phases that may last: compilation, and what follows the last step.
UNTIMED = ("starting", "first step", "finishing")
_GO_ON = "the same command goes on from the last checkpoint"


class Beat:
    """What is known of one process."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"host": "an unknown host", "step": 0, "what": "starting"}
        self.changed = time.monotonic()

    def update(self, text: str) -> None:
        """Take a beat; the same one as before is no sign of life."""
        values = json.loads(text)
        if values != self.values:
            self.values, self.changed = values, time.monotonic()


class Watch:
    """One process's view of all; see the module's docstring."""

    def __init__(self, client: Any, index: int, count: int, silence: float, step_limit: float):
        self.index, self.count = index, count
        self._client, self._silence, self._step_limit = client, silence, step_limit
        self._interval = min(max(silence / 10, 0.2), 5.0)
        self._beats = {i: Beat() for i in range(count)}
        self._step, self._what, self._since = 0, "starting", time.monotonic()
        self._number = 0
        self._over = threading.Event()
        self._abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def start(self) -> None:
        """Begin to beat and to look."""
        # A Python handler would run too late: only code called by the signal itself comes before
        # the end of the process.
        ctypes.CDLL(None).signal(signal.SIGABRT, self._abort_handler)
        self._thread.start()

    def doing(self, step: int, what: str) -> None:
        """What this process does from now on."""
        self._step, self._what, self._since = step, what, time.monotonic()

    def _run(self) -> None:
        while not self._over.wait(self._interval if self._number else 0.0):
            try:
                self._beat()
                reason = self._reason(dict(self._client.key_value_dir_get(_PREFIX)))
            except Exception as error:  # Whatever it is, no process must be left alone.
                if self._over.is_set():
                    return
                reason = (f"{self.name(0)} cannot be reached ({_first_line(error)})", 0)
            if reason is not None:
                self._end(*reason)

    def _beat(self) -> None:
        self._number += 1
        values = {"n": self._number, "host": socket.gethostname()}
        values |= {"step": self._step, "what": self._what}
        self._client.key_value_set(f"{_PREFIX}beat/{self.index}", json.dumps(values), True)

    def _reason(self, entries: dict[str, str]) -> tuple[str, int] | None:
        """Why the run must end, and the exit code for it (0: that of a lost host)."""
        for key, text in entries.items():
            if key.startswith(f"{_PREFIX}beat/"):
                self._beats[int(key.rpartition("/")[2])].update(text)
        for key, text in entries.items():
            if key.startswith(f"{_PREFIX}end/") and key != f"{_PREFIX}end/{self.index}":
                found = json.loads(text)
                return found["message"], found["code"]
        now = time.monotonic()
        for i, beat in self._beats.items():
            if i != self.index and now - beat.changed > self._silence:
                return f"{self.name(i)} was not heard of for {self._silence:g} s{self._at(i)}", 0
        if self._what not in UNTIMED and 0 < self._step_limit < now - self._since:
            return self._stuck(), 0
        return None

    def _stuck(self) -> str:
        """Name the processes that the others wait for: furthest behind, not in the step yet."""
        beats = {i: beat.values for i, beat in self._beats.items()}
        last = min(values["step"] for values in beats.values())
        behind = [i for i, values in beats.items() if values["step"] == last]
        outside = [i for i in behind if beats[i]["what"] != "in the step"]
        names = ", ".join(self.name(i) + self._at(i) for i in outside or behind)
        return f"no step was done for {self._step_limit:g} s, behind is {names}"

    def name(self, index: int) -> str:
        """A process with its host."""
        return f"process {index} on {self._beats[index].values['host']}"

    def _at(self, index: int) -> str:
        values = self._beats[index].values
        return f" (step {values['step']}, {values['what']})"

    def _end(self, message: str, code: int) -> NoReturn:
        """Tell the others, say why, and end this process."""
        text = f"{message}; {_GO_ON}" if _GO_ON not in message and not code else message
        self._publish(text, code)
        _say(f"error: process {self.index} ends: {text}")
        self._linger()
        os._exit(code or EXIT_HOST_LOST)

    def _publish(self, message: str, code: int) -> None:
        with contextlib.suppress(Exception):  # Without a coordinator there is nobody to tell.
            value = json.dumps({"message": message, "code": code})
            self._client.key_value_set(f"{_PREFIX}end/{self.index}", value, True)

    def _linger(self) -> None:
        """The coordinator must outlive the others' next look, or they would blame it."""
        if self.index == 0:
            time.sleep(2 * self._interval + 1.0)

    def fail(self, error: BaseException) -> NoReturn:
        """End everything because of an error in this process."""
        if _of_the_runtime(error):
            # More likely another process is gone. Let the watch find out which.
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
        """Wait until all have come here (the first process writes the report), and stop looking."""
        self.doing(self._step, "finishing")
        self._client.wait_at_barrier("pyratok/done", _REPORT_SECONDS * 1000)
        self._over.set()
        self._thread.join()
        ctypes.CDLL(None).signal(signal.SIGABRT, None)

    def _aborted(self, number: int) -> None:
        """JAX found the run broken. Runs inside the abort."""
        host, _, port = (distributed.global_state.coordinator_address or "").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2.0).close()
            reason = "JAX lost another process"
        except (OSError, ValueError):
            reason = f"{self.name(0)}, which holds the run together, is gone"
        _say(f"error: process {self.index} ends: {reason}; {_GO_ON}")
        os._exit(EXIT_HOST_LOST)


_current: Watch | None = None


def doing(step: int, what: str) -> None:
    """Note for the watch, if there is one, what this process does from now on."""
    if _current is not None:
        _current.doing(step, what)


@contextlib.contextmanager
def watched(silence: float, step_limit: float) -> Iterator[None]:
    """Run a training under the watch; an error in it ends all processes (and this one at once).

    Nothing for a process that is alone.

    Args:
        silence: seconds after which a process that is not heard of counts as lost.
        step_limit: seconds that a step, its data and its checkpoint may take; 0: any time.
    """
    global _current
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        yield
        return
    watch = Watch(state.client, state.process_id, state.num_processes, silence, step_limit)
    _current = watch
    watch.start()
    try:
        yield
        watch.leave()
    except BaseException as error:
        watch.fail(error)
    finally:
        _current = None


def _of_the_runtime(error: BaseException) -> bool:
    """Whether an error may come of a broken connection to another process."""
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
