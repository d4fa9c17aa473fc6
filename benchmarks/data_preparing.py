"""How fast `data.prepare` turns raw videos into shards: per core, and over Beam workers.

    python benchmarks/data_preparing.py [--videos 24] [--workers 0,1,2] [--stores bytes,reencode]

Videos are cuts of the 720p film, different in each. Each row is one run of the command: seconds of
the clock, and frames of the sources per second of the clock and of all processes' time, both less
what the same run costs with one video. Prints JSON; quote the ratios.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pyratok_jax.data.sources.builtin import film
from pyratok_jax.data.video.files import iter_span, probe
from pyratok_jax.data.video.writer import VideoWriter

FRAMES = 75  # of each video
FIRST, STEP = 400, 7  # frame of the film that the first begins with, and between two videos


def write_videos(folder: Path, count: int) -> int:
    """Cuts of the film, H.264 of 720p; returns the frames of all."""
    source = str(film())
    rate = probe(source).fps
    whole = STEP * (count - 1) + FRAMES
    spans = itertools.islice(iter_span(source), FIRST, FIRST + whole)
    frames = [frame for _, frame in spans]
    folder.mkdir(parents=True)
    for number in range(count):
        first = number * STEP
        with VideoWriter(folder / f"{number:03d}.mp4", fps=rate, crf=23) as writer:
            for frame in frames[first : first + FRAMES]:
                writer.write(frame)
    return count * FRAMES


def prepare(source: Path, output: Path, *words: str) -> tuple[float, float]:
    """Seconds of the clock and of all processes of one run.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "pyratok_jax.data.prepare", "--input", str(source)]
    before, start = _of_children(), time.monotonic()
    subprocess.run([*command, "--output", str(output), *words], check=True, capture_output=True)
    return time.monotonic() - start, _of_children() - before


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def runner(workers: int) -> tuple[str, ...]:
    """Options of a run; 0 workers: without Beam."""
    if not workers:
        return ("--runner", "none")
    return ("--direct_num_workers", str(workers), "--direct_running_mode", "multi_processing")


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=24, help="in each run")
    parser.add_argument("--workers", default="0,1,2", help="of Beam; 0: without it")
    parser.add_argument("--stores", default="bytes,reencode", help="as --store takes them")
    parser.add_argument("--shards", type=int, default=8)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        frames = write_videos(root / "videos", arguments.videos)
        write_videos(root / "one", 1)
        for store in arguments.stores.split(","):
            for workers in map(int, arguments.workers.split(",")):
                words = ("--store", store, "--shards", str(arguments.shards), *runner(workers))
                few = prepare(root / "one", root / f"one_{store}_{workers}", *words)
                all_of = prepare(root / "videos", root / f"{store}_{workers}", *words)
                clock, cores = (
                    (frames - FRAMES) / max(a - b, 1e-9) for a, b in zip(all_of, few, strict=True)
                )
                rows.append(
                    {"store": store, "workers": workers, "seconds": round(all_of[0], 1),
                     "of one video": round(few[0], 1), "frames/s": round(clock),
                     "frames/s of a core": round(cores)}
                )  # fmt: skip
    print(json.dumps({"cores": os.cpu_count(), "frames": frames, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
