"""Random access to 17x256x256 clips of the 720p film: clips per second on one core.

    python benchmarks/data_loading.py [--clips 24] [--plain-clips 3]

Compared in one run, on one core, interleaved clip by clip, by the CPU time of the process: this
project's reader; a plain PyAV loop that decodes each clip from the start of the file; decord2 with
a reader opened for each clip, as over millions of files; and decord2 without the time of opening,
as with a reader that is kept open. Prints JSON; quote the ratios.

An open reader of decord2 polls in a thread of its own, also while nobody reads from it. None is
open while others are measured: they would pay for it.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import TypeVar

import av
import numpy as np

from pyratok_jax.data.buckets import Bucket
from pyratok_jax.data.sources.builtin import film
from pyratok_jax.data.video.cutting import covering_size
from pyratok_jax.data.video.files import probe, read_clip

BUCKET = Bucket(17, 256, 256)
T = TypeVar("T")


def cropped(frames: np.ndarray) -> np.ndarray:
    left = (frames.shape[2] - BUCKET.width) // 2
    return np.ascontiguousarray(frames[:, :, left : left + BUCKET.width])


def ours(path: str, first: int, size: tuple[int, int], fps: float) -> np.ndarray:
    return cropped(read_clip(path, start=first / fps, frames=BUCKET.frames, size=size))


def plain_loop(path: str, first: int, size: tuple[int, int], fps: float) -> np.ndarray:
    frames = []
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number >= first:
                frames.append(
                    frame.reformat(size[1], size[0], "rgb24", interpolation="AREA").to_ndarray()
                )
            if len(frames) == BUCKET.frames:
                break
    return cropped(np.stack(frames))


def with_decord(path: str, first: int, size: tuple[int, int]) -> tuple[float, float, np.ndarray]:
    """Seconds of opening and of reading, and the clip."""
    import decord

    opening, reader = timed(
        lambda: decord.VideoReader(path, width=size[1], height=size[0], num_threads=1)
    )
    frames = range(first, first + BUCKET.frames)
    reading, clip = timed(lambda: cropped(reader.get_batch(frames).asnumpy()))
    return opening, reading, clip


def timed(action: Callable[[], T]) -> tuple[float, T]:
    begin = time.process_time()
    result = action()
    return time.process_time() - begin, result


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def ratio(ways: dict[str, list[float]], other: str, right: list[bool]) -> float:
    """How many times faster ours is, over the clips for which decord2 returned the right frames."""
    chosen = np.array(right)
    return round(
        float(np.sum(np.array(ways[other])[chosen]) / np.sum(np.array(ways["ours"])[chosen])), 2
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--plain-clips", type=int, default=3)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    path = str(film())
    info = probe(path)
    size = covering_size(info.height, info.width, BUCKET)
    firsts = np.random.default_rng(0).integers(300, info.frames - 600, arguments.clips)
    ways: dict[str, list[float]] = {"ours": [], "plain": [], "decord2": [], "decord2_kept_open": []}
    worst, right = 0.0, []
    for number, first in enumerate(firsts.tolist()):
        seconds, clip = timed(lambda f=first: ours(path, f, size, info.fps))
        ways["ours"].append(seconds)
        opening, reading, other = with_decord(path, first, size)
        ways["decord2"].append(opening + reading)
        ways["decord2_kept_open"].append(reading)
        right.append(difference(clip, other) < 5)
        if number < arguments.plain_clips:
            seconds, other = timed(lambda f=first: plain_loop(path, f, size, info.fps))
            ways["plain"].append(seconds)
            worst = max(worst, difference(clip, other))
    rate = {name: len(times) / sum(times) for name, times in ways.items() if times}
    # The plain loop's time grows with the clip's place, so the two are compared on the same clips.
    ours_there = ways["ours"][: len(ways["plain"])]
    same = round(sum(ways["plain"]) / sum(ours_there), 2) if ours_there else None
    print(json.dumps({
        "clip": BUCKET.name, "video": f"{info.width}x{info.height}, {info.frames} frames",
        "clips_per_second_per_core": {k: round(v, 3) for k, v in rate.items()},
        "ours_over_plain_on_the_same_clips": same,
        "ours_over_decord2": ratio(ways, "decord2", right),
        "ours_over_decord2_kept_open": ratio(ways, "decord2_kept_open", right),
        "largest_mean_difference_to_the_plain_loop": round(worst, 3),
        "clips_where_decord2_returned_other_frames": right.count(False),
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
