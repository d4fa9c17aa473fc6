"""Decoding under guard: a time limit for decoders that hang, back-off for remote files.

The guarded decoder is a process of its own that runs this very module: it may hang or crash without
taking the training along. Protocol on its standard input and output: one JSON line, then as many
raw bytes as the line states. Requests: {"op": "clip" | "probe" | "count", "source": path or null,
"bytes": n, ...}. Answers: {"error": [path, reason, transient]}, {"refused": message},
{"shape": [...], "bytes": n}, {"info": [...]} or {"count": n}.
"""

import dataclasses
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, TypeVar

import numpy as np
from absl import logging

from pyratok_jax.data.video.files import (
    BrokenVideoError,
    VideoInfo,
    VideoSource,
    count_frames,
    name_of,
    probe,
    read_clip,
)
from pyratok_jax.errors import UserError

T = TypeVar("T")
_CHUNK = 1 << 20


class Decoder:
    """Reads clips and headers, each within a time limit.

    With a limit, decoding runs in a child process per calling thread, which is ended and
    replaced when it takes too long or crashes; the file then counts as broken. Without one
    (0), decoding runs in the calling thread. Remote files that are missing or fail are tried
    again after 1, 2, 4 ... times `delay` seconds.
    """

    def __init__(self, time_limit: float = 0.0, retries: int = 4, delay: float = 1.0) -> None:
        self.time_limit, self.retries, self.delay = time_limit, retries, delay
        self._local = threading.local()

    def __reduce__(self) -> tuple:
        return Decoder, (self.time_limit, self.retries, self.delay)

    def probe(self, source: VideoSource) -> VideoInfo:
        """As `videos.probe`, guarded. Raises: BrokenVideoError."""
        if not self.time_limit:
            return self._retried(lambda: probe(source))
        header, _ = self._retried(lambda: self._child().ask(source, {"op": "probe"}))
        return VideoInfo(*header["info"])

    def count(
        self, source: VideoSource, start: float | None = None, end: float | None = None
    ) -> int:
        """As `videos.count_frames`, guarded. Raises: BrokenVideoError."""
        if not self.time_limit:
            return self._retried(lambda: count_frames(source, start, end))
        request = {"op": "count", "start": start, "end": end}
        header, _ = self._retried(lambda: self._child().ask(source, request))
        return header["count"]

    def clip(
        self,
        source: VideoSource,
        *,
        start: float,
        frames: int,
        fps: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """As `videos.read_clip`, guarded. Raises: BrokenVideoError."""
        if not self.time_limit:
            return self._retried(
                lambda: read_clip(source, start=start, frames=frames, fps=fps, size=size)
            )
        request = {"op": "clip", "start": start, "frames": frames, "fps": fps, "size": size}
        header, data = self._retried(lambda: self._child().ask(source, request))
        return np.frombuffer(data, np.uint8).reshape(header["shape"])

    def _retried(self, action: Callable[[], T]) -> T:
        return with_back_off(action, self.retries, self.delay)

    def _child(self) -> "_Child":
        child = getattr(self._local, "child", None)
        if child is None:
            child = self._local.child = _Child(self.time_limit)
        return child


def with_back_off(action: Callable[[], T], retries: int, delay: float) -> T:
    """Run an action again, up to `retries` times, while it fails for a passing reason.

    Passing reasons are those of remote storage (`BrokenVideoError.transient`); waits double from
    `delay` seconds. Raises: the last error.
    """
    for attempt in range(retries):
        try:
            return action()
        except BrokenVideoError as error:
            if not error.transient:
                raise
            wait = delay * 2**attempt
            logging.warning(
                "%s: %s; attempt %d of %d follows in %.1f s",
                error.path,
                error.reason,
                attempt + 2,
                retries + 1,
                wait,
            )
            time.sleep(wait)
    return action()


class _Child:
    """The calling side of one decoder process; the process starts with the first request."""

    def __init__(self, time_limit: float) -> None:
        self._limit = time_limit
        self._process: subprocess.Popen | None = None

    def _start(self) -> subprocess.Popen:
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
        command = [sys.executable, "-m", "pyratok_jax.data.video.decoding"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )
        self._process = process
        return process

    def ask(self, source: VideoSource, request: dict) -> tuple[dict, bytearray]:
        """Send a request and wait for its answer: (header, raw bytes)."""
        fresh = self._process is None or self._process.poll() is not None
        process = self._start() if fresh or self._process is None else self._process
        payload = source if isinstance(source, bytes) else b""
        path = None if isinstance(source, bytes) else os.fspath(source)
        header = json.dumps(request | {"source": path, "bytes": len(payload)}).encode() + b"\n"
        # A process that is just starting gets time for its imports on top.
        deadline = time.monotonic() + self._limit + (30.0 if fresh else 0.0)
        try:
            assert process.stdin is not None
            for part in (header, payload):
                view = memoryview(part)
                while view:
                    view = view[process.stdin.write(view) :]
            line, rest = self._line(process, deadline)
            answer = json.loads(line)
            data = self._exactly(process, rest, answer.get("bytes", 0), deadline)
        except TimeoutError as error:
            self.close()
            reason = f"decoding did not end within {self._limit:g} s and was cut off"
            raise BrokenVideoError(name_of(source), reason) from error
        except (BrokenPipeError, EOFError) as error:
            self.close()
            raise BrokenVideoError(name_of(source), "the decoder crashed on it") from error
        if "refused" in answer:
            raise UserError(answer["refused"])
        if "error" in answer:
            raise BrokenVideoError(*answer["error"])
        return answer, data

    def _line(self, process: subprocess.Popen, deadline: float) -> tuple[bytes, bytearray]:
        buffer = bytearray()
        while (end := buffer.find(b"\n")) < 0:
            buffer += self._some(process, deadline)
        return bytes(buffer[:end]), buffer[end + 1 :]

    def _exactly(
        self, process: subprocess.Popen, begun: bytearray, size: int, deadline: float
    ) -> bytearray:
        while len(begun) < size:
            begun += self._some(process, deadline)
        return begun

    def _some(self, process: subprocess.Popen, deadline: float) -> bytes:
        assert process.stdout is not None
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise TimeoutError
        data = os.read(process.stdout.fileno(), _CHUNK)
        if not data:
            raise EOFError
        return data

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def __del__(self) -> None:
        self.close()


def answer(request: dict, payload: bytes) -> tuple[dict, memoryview | bytes]:
    """Do one request; everything that goes wrong becomes part of the answer."""
    source: VideoSource = payload if request["source"] is None else request["source"]
    try:
        if request["op"] == "probe":
            return {"info": list(dataclasses.astuple(probe(source)))}, b""
        if request["op"] == "count":
            return {"count": count_frames(source, request["start"], request["end"])}, b""
        clip = read_clip(
            source,
            start=request["start"],
            frames=request["frames"],
            fps=request["fps"],
            size=request["size"] and (request["size"][0], request["size"][1]),
        )
        return {"shape": clip.shape, "bytes": clip.nbytes}, clip.data.cast("B")
    except BrokenVideoError as error:
        return {"error": [error.path, error.reason, error.transient]}, b""
    except UserError as error:  # Not of this file: storage that does not answer.
        return {"refused": str(error)}, b""
    except Exception as error:  # A decoder's defect must reach the caller as a broken file.
        reason = f"{type(error).__name__}: {error}"
        return {"error": [str(request["source"]), reason, False]}, b""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the other side closes its end."""
    while line := requests.readline():
        request = json.loads(line)
        header, data = answer(request, requests.read(request["bytes"]))
        answers.write(json.dumps(header).encode() + b"\n")
        answers.write(data)
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
