"""A decoder in a process of its own: it may hang or crash without taking the training along.

Protocol on standard input and output: one JSON line, then as many raw bytes as the line states.
Requests: {"op": "clip" | "probe" | "count", "source": path or null, "bytes": n, ...}.
Answers: {"error": [path, reason, transient]}, {"shape": [...], "bytes": n}, {"info": [...]} or
{"count": n}.
"""

import dataclasses
import json
import sys
from typing import BinaryIO

from pyratok_jax.data.video.files import (
    BrokenVideoError,
    VideoSource,
    count_frames,
    probe,
    read_clip,
)


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
