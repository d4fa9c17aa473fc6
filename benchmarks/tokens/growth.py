"""How time and memory grow: with a token dataset's records, a manifest's rows, and a clip.

    python -m benchmarks.tokens.growth tokens [--counts 1000,10000,100000,1000000]
    python -m benchmarks.tokens.growth manifests [--counts 1000,10000,100000,1000000]
    python -m benchmarks.tokens.growth clips [--frames 9,17,33,65] [--sides 64,128,256]

Every row is a process of its own, so that `peak_mb` is its peak resident memory; processor
seconds are counted, which other work on the machine disturbs less than wall seconds. Datasets are
written to a scratch folder first; records hold a short caption and the 212 tokens of 9x32x32
pixels. `clips` encodes and decodes with `builtin:world`, compiled and then timed. Prints JSON;
`exponent` is the slope of log time against log size between a row and the one before it: 1 is
linear.
"""

import argparse
import dataclasses
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
_READS = 2000
_SHARDS = 8


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, and what it returned."""
    begin = time.process_time()
    found = run()
    return time.process_time() - begin, found


def alone(measure: Callable[..., Row], *arguments: Any) -> Row:
    """What `measure` gives in a new process, with its peak resident memory."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        row = pool.submit(measure, *arguments).result()
        return row | {"peak_mb": round(pool.submit(_peak).result())}


def _peak() -> float:
    # Not getrusage: what it gives a new process begins with its parent's memory.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def with_exponents(rows: list[Row], size: str, seconds: Sequence[str]) -> list[Row]:
    """Rows with the exponent of growth since the row before, for each of the times."""
    for before, row in zip(rows, rows[1:], strict=False):
        step = math.log(row[size] / before[size])
        row["exponent"] = {
            name: round(math.log(max(row[name], 1e-6) / max(before[name], 1e-6)) / step, 2)
            for name in seconds
        }
    return rows


def write_tokens(folder: Path, count: int) -> None:
    """A dataset of `count` records of random tokens, in shards as an export writes them."""
    from pyratok_jax.generator import Clip
    from pyratok_jax.generator.token_dataset import sample_record
    from pyratok_jax.io.shards import ShardWriter, shard_name
    from pyratok_jax.tokenizer import load_tokenizer
    from pyratok_jax.tokens.schema import encode_record
    from pyratok_jax.tokens.shards import ARRAY_RECORD_OPTIONS

    tokenizer = load_tokenizer("builtin:world")
    batch = tokenizer.encode(np.zeros((1, 9, 32, 32, 3), np.uint8))
    ids = tuple(level[0] for level in batch.ids)
    clip = Clip("a red circle moves to the right", 0, 0, dataclasses.replace(batch, ids=ids))
    record = sample_record(clip, "0", fps=10.0, generator="", checkpoint="")
    rng = np.random.default_rng(0)
    folder.mkdir()
    for shard in range(_SHARDS):
        path = folder / shard_name("tokens", "array_record", shard, _SHARDS)
        with ShardWriter(path, "array_record", ARRAY_RECORD_OPTIONS) as writer:
            for number in range(shard, count, _SHARDS):
                tokens = tuple(
                    rng.integers(0, 1 << 16, level.shape, np.uint16) for level in record.tokens
                )
                name = f"film{number:07d}"
                writer.write(encode_record(dataclasses.replace(record, id=name, tokens=tokens)))


def measure_tokens(folder: str, count: int) -> Row:
    """Opening, random reads and the statistics of `tokens.inspect`."""
    from pyratok_jax.tokens.dataset import TokenDataset, read_all
    from pyratok_jax.tokens.inspection import Inspection

    opening, dataset = timed(lambda: TokenDataset(folder))
    numbers = np.random.default_rng(1).integers(0, count, _READS)
    dataset[0]
    reading, _ = timed(lambda: [dataset[int(n)].id for n in numbers])
    inspection = Inspection()

    def inspect() -> None:
        inspection.add_all(read_all(folder), 12, count)
        inspection.summary()

    return {
        "records": count, "open_s": round(opening, 4),
        "random_read_us": round(reading / _READS * 1e6, 1),
        "inspect_s": round(timed(inspect)[0], 2),
    }  # fmt: skip


def write_manifest(path: Path, count: int) -> None:
    """A .jsonl manifest of clips that name their size."""
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps({
                "path": f"videos/{number % 1000:03d}/{number:07d}.mp4",
                "caption": f"clip {number} of a red circle that moves to the right",
                "width": 1280, "height": 720, "seconds": 8.0, "fps": 24.0,
            }) + "\n")  # fmt: skip


def measure_manifest(path: str, count: int) -> Row:
    """Loading, and random rows."""
    from pyratok_jax.data.sources.registry import load_source

    loading, records = timed(lambda: load_source(path))
    numbers = np.random.default_rng(1).integers(0, count, _READS)
    reading, _ = timed(lambda: [records[int(n)].path for n in numbers])
    return {
        "rows": count, "load_s": round(loading, 3),
        "random_read_us": round(reading / _READS * 1e6, 1),
    }  # fmt: skip


def measure_clip(frames: int, side: int, batch: int) -> Row:
    """Encoding and decoding of one batch, after a first one that compiles."""
    from pyratok_jax.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("builtin:world")
    shape = (batch, frames, side, side, 3)
    video = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    tokens = tokenizer.encode(video)
    np.asarray(tokenizer.decode(tokens))
    encoding, tokens = timed(lambda: tokenizer.encode(video))
    decoding, _ = timed(lambda: np.asarray(tokenizer.decode(tokens)))
    return {
        "frames": frames, "side": side, "batch": batch, "pixels": batch * frames * side * side,
        "encode_s": round(encoding, 3), "decode_s": round(decoding, 3),
    }  # fmt: skip


def numbers(text: str) -> list[int]:
    """Integers between commas."""
    return [int(word) for word in text.split(",")]


def run(options: argparse.Namespace) -> dict[str, list[Row]]:
    """The rows that are asked for."""
    if options.of == "clips":
        base = options.frames[0], options.sides[0], options.batches[0]
        cases = {
            "frames": [(frames, *base[1:]) for frames in options.frames],
            "side": [(base[0], side, base[2]) for side in options.sides],
            "batch": [(*base[:2], batch) for batch in options.batches],
        }  # fmt: skip
        return {
            name: with_exponents(
                [alone(measure_clip, *case) for case in some], "pixels", ("encode_s", "decode_s")
            )
            for name, some in cases.items()
        }
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in options.counts:
            if options.of == "tokens":
                folder = Path(scratch) / str(count)
                write_tokens(folder, count)
                rows.append(alone(measure_tokens, str(folder), count))
            else:
                path = Path(scratch) / f"{count}.jsonl"
                write_manifest(path, count)
                rows.append(alone(measure_manifest, str(path), count))
    if options.of == "tokens":
        return {"tokens": with_exponents(rows, "records", ("open_s", "inspect_s"))}
    return {"manifests": with_exponents(rows, "rows", ("load_s",))}


def main(argv: Sequence[str] | None = None) -> None:
    """Run, and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("of", choices=("tokens", "manifests", "clips"))
    parser.add_argument("--counts", type=numbers, default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--frames", type=numbers, default=[9, 17, 33, 65])
    parser.add_argument("--sides", type=numbers, default=[64, 128, 256])
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4])
    print(json.dumps(run(parser.parse_args(argv)), indent=1))


if __name__ == "__main__":
    main()
