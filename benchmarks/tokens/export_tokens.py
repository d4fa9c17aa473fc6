"""Token export against the bare compiled encoder on the same clips: throughput and memory.

    python benchmarks/tokens/export_tokens.py [--clips 200] [--checkpoint DIR] [--size 96]

Videos are written once from the demo's clips (`--source noise`: from random frames). The bare
encoder gets the padded clips from memory; the exporter reads, decodes, encodes and writes them.
Both use the same batch size and the same compiled program; they take turns, clip set by clip set,
so that other load on the machine falls on both. Without a checkpoint the demo's tokenizer with
random weights is used, which costs the same. Prints JSON; on a machine that others use, too, the
ratio of processor seconds says more than that of wall seconds.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from flax import nnx

from pyratok_jax.data.sources.builtin import demo_records
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.files import iter_frames, read_clip
from pyratok_jax.data.video.writer import VideoWriter
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.wan_vae.config import tiny
from pyratok_jax.tokenizer import Tokenizer, load_tokenizer
from pyratok_jax.tokens.exporting import export
from pyratok_jax.tokens.options import ExportOptions, Machine
from pyratok_jax.tokens.plan import ExportPlan, provenance_of, source_fingerprint


def demo_tokenizer() -> Tokenizer:
    config = PyraTokConfig(
        vae=tiny(),
        grids="pyramid",
        width=64,
        heads=4,
        text_width=576,
        synthesis_width=32,
        lora_rank=8,
    )
    return Tokenizer(PyraTok(config, rngs=nnx.Rngs(0)), checkpoint_hash="random")


def write_videos(folder: Path, clips: int, frames: int, size: int, source: str) -> list[ClipRecord]:
    if source == "noise":
        rng = np.random.default_rng(0)
        data = rng.integers(0, 255, (min(clips, 16), frames, size, size, 3), dtype=np.uint8)
    else:
        data = [
            read_clip(r.path, start=r.start or 0.0, frames=frames, size=(size, size))
            for r in demo_records()
        ]
    records = []
    for number in range(clips):
        path = folder / f"{number:05d}.mp4"
        with VideoWriter(path, fps=24, crf=18, preset="veryfast") as writer:
            for frame in data[number % len(data)]:
                writer.write(frame)
        records.append(ClipRecord(path.name, str(path)))
    return records


Seconds = tuple[float, float]  # Wall, processor.


def clock() -> Seconds:
    return time.perf_counter(), time.process_time()


def since(begin: Seconds) -> Seconds:
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def bare(tokenizer: Tokenizer, records: list[ClipRecord], batch: int) -> Seconds:
    """Seconds for encoding the clips from memory."""
    videos = [np.stack(list(iter_frames(record.path))) for record in records]
    begin = clock()
    for first in range(0, len(videos), batch):
        group = videos[first : first + batch]
        group += [np.zeros_like(group[0])] * (batch - len(group))
        tokenizer.encode_padded(np.stack(group), [None] * batch)
    return since(begin)


def exported(
    tokenizer: Tokenizer, records: list[ClipRecord], frames: int, batch: int, readers: int
) -> Seconds:
    """Seconds for exporting the clips to a new folder."""
    with tempfile.TemporaryDirectory() as output:
        options = ExportOptions(shards=2, window=frames, batch=batch).resolved(
            tokenizer.config.vae.temporal_factor
        )
        plan = ExportPlan(output, options, provenance_of(tokenizer), "benchmark",
                    source_fingerprint(records), len(records))  # fmt: skip
        begin = clock()
        progress = export(plan, records, tokenizer, Machine(readers=readers))
        assert progress.clips == len(records)
        return since(begin)


class Memory:
    """Resident memory of this process, sampled while it works."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def _run(self) -> None:
        process = psutil.Process()
        while not self._end.wait(0.2):
            self.samples.append(process.memory_info().rss / 1e6)

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="the clips are split over these")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--readers", type=int, default=1)
    parser.add_argument("--source", choices=("demo", "noise"), default="demo")
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--memory-only", action="store_true", help="one export of all clips")
    a = parser.parse_args()
    tokenizer = load_tokenizer(a.checkpoint) if a.checkpoint else demo_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        records = write_videos(Path(folder), a.clips, a.frames, a.size, a.source)
        bare(tokenizer, records[: a.batch], a.batch)  # Compiles.
        pure, whole = [], []
        with Memory() as memory:
            if a.memory_only:
                whole.append(exported(tokenizer, records, a.frames, a.batch, a.readers))
            for part in [] if a.memory_only else np.array_split(np.arange(len(records)), a.rounds):
                chosen = [records[i] for i in part]
                pure.append(bare(tokenizer, chosen, a.batch))
                whole.append(exported(tokenizer, chosen, a.frames, a.batch, a.readers))
    pure, whole = (np.array(x).reshape(-1, 2) for x in (pure, whole))
    ratio = pure.sum(0) / whole.sum(0) if len(pure) else None
    rates = {}
    for name, seconds in (("exporter", whole), ("bare encoder", pure)):
        if len(seconds):
            rates[name] = round(a.clips / float(seconds[:, 0].sum()), 3)
    tenth = max(len(memory.samples) // 10, 1)
    print(json.dumps({
        "clips": a.clips, "clip": f"{a.frames}x{a.size}x{a.size}", "batch": a.batch,
        "clips_per_second": rates,
        "exporter_over_bare": None if ratio is None else
        {"wall": round(ratio[0], 3), "processor": round(ratio[1], 3)},
        "by_round": [np.round(p / w, 3).tolist() for p, w in zip(pure, whole, strict=False)],
        "resident_mb": {"first tenth": round(float(np.mean(memory.samples[:tenth]))),
                        "last tenth": round(float(np.mean(memory.samples[-tenth:]))),
                        "most": round(max(memory.samples))},
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
