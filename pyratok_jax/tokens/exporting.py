"""The exporter: readers, batches, shards, in one bounded flow.

Clips go to shards in the order of the source, whatever the number of hosts. Reading, encoding and
writing finished shards overlap. What was begun and not finished when the process ends is done
again by the next run; what is finished is not.

When all shards are finished the dataset gets TFDS's metadata, its card and the list of rejected
clips.
"""

import contextlib
import queue
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from pyratok_jax.checkpoints import verification
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.errors import is_full_disk
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import write_json, write_text
from pyratok_jax.io.documents import read_npz, refusing
from pyratok_jax.io.markdown import cell
from pyratok_jax.metrics.code_usage import counted_bits, usage
from pyratok_jax.tokens.batches import (
    Batch,
    Budget,
    ClipEnd,
    Encoding,
    ReadBlock,
    ReaderFailure,
    Readers,
    ShapeBatcher,
)
from pyratok_jax.tokens.dataset import CARD
from pyratok_jax.tokens.options import Machine
from pyratok_jax.tokens.plan import ExportPlan
from pyratok_jax.tokens.schema import SCHEMA_VERSION, feature_spec, tfds_features
from pyratok_jax.tokens.shards import ShardSpool, full_disk, is_complete

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import TokenizerLike

_OPEN_SHARDS = 3  # Shards that may be read but not finished, before batches go out unfilled.


@dataclass
class Progress:
    """What this process has done so far; `bytes` are those of uint8 frames taken in.

    A clip counts when all of it is encoded.
    """

    clips: int = 0
    rejected: int = 0
    tokens: int = 0
    bytes: int = 0


def shards_of(plan: ExportPlan, machine: Machine) -> list[int]:
    """The shards that a process has to make and that are not finished."""
    own = range(machine.index, plan.options.shards, machine.count)
    return [number for number in own if not plan.job.is_done(number)]


def drop_damaged(plan: ExportPlan, machine: Machine) -> list[str]:
    """Withdraw those finished shards of a process that are not what was written.

    Returns:
        their names; `export` makes them again.
    """
    damaged = []
    for number in range(machine.index, plan.options.shards, machine.count):
        report = plan.job.finished_report(number)
        if report is None:
            continue
        if is_complete(report) and (not verification.enabled() or plan.job.is_intact(number)):
            continue
        plan.job.withdraw(number)
        damaged.append(plan.job.shard_name(number))
    return damaged


def export(
    plan: ExportPlan,
    records: Sequence[ClipRecord],
    tokenizer: "TokenizerLike",
    machine: Machine,
    advance: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Make all unfinished shards of this process.

    Args:
        plan: what to make.
        records: the source, `plan.clips` long.
        tokenizer: of the plan.
        machine: this process's share and means.
        advance: called whenever there is progress.

    Raises:
        UserError: the disk is full.
    """
    with _scratch(plan, machine) as scratch:
        flow = _Flow(plan, records, tokenizer, machine, scratch, advance)
        try:
            return flow.run()
        except Exception as error:
            if not is_full_disk(error):
                raise
            flow.stop()
            done = sum(plan.job.is_done(n) for n in range(plan.options.shards))
            raise full_disk(plan.output, done, plan.options.shards) from error
        finally:
            flow.stop()


@contextlib.contextmanager
def _scratch(plan: ExportPlan, machine: Machine) -> Iterator[Path]:
    """A folder for unfinished work; a killed run's is emptied first.

    It is in the output, where shards can be renamed into place, or on the local disk if the
    output is remote.
    """
    import tempfile

    if "://" in plan.output:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    path = Path(plan.output) / f".unfinished.{machine.index}-of-{machine.count}"
    for old in Path(plan.output).glob(f".unfinished.{machine.index}-of-*"):
        shutil.rmtree(old, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _Flow:
    """The state of one run."""

    def __init__(
        self,
        plan: ExportPlan,
        records: Sequence[ClipRecord],
        tokenizer: "TokenizerLike",
        machine: Machine,
        scratch: Path,
        advance: Callable[[Progress], None],
    ) -> None:
        self._plan, self._scratch, self._advance = plan, scratch, advance
        self._todo = shards_of(plan, machine)
        self._spools: dict[int, ShardSpool] = {}
        self._budget = Budget(machine.buffer_bytes)
        self._batcher = ShapeBatcher(plan.options)
        self._encoding = Encoding(tokenizer, plan.options, plan.provenance)
        self._writer = ThreadPoolExecutor(1, "shards")
        self._writing: list[Future] = []
        self._progress = Progress()
        self._encoded = Counter[int]()  # Blocks of every clip that is not counted yet,
        self._blocks: dict[int, int] = {}  # and how many it has, once it was read.
        work = iter([(n, clip) for n in self._todo for clip in plan.clips_of(n)])
        multiple = plan.options.side_multiple(tokenizer)
        self._readers = Readers(
            records, work, plan.options, multiple, machine.readers, self._budget
        )

    def run(self) -> Progress:
        """All shards to their end."""
        for number in self._todo:
            if not len(self._plan.clips_of(number)):
                self._finish(ShardSpool(self._plan, number, self._scratch))
        while True:
            alive = self._readers.alive  # Before the queue is looked at, or its end is missed.
            message = self._message()
            if message is not None:
                self._take(message)
            elif not alive or (self._budget.starved and self._encoding.idle):
                self._send(self._batcher.flush_fullest())
            self._collect(wait=self._encoding.full)
            if not alive and message is None and self._encoding.idle and not self._spools:
                break
        for future in self._writing:
            future.result()
        return self._progress

    def stop(self) -> None:
        """End all threads; can be called again."""
        self._readers.stop()
        self._encoding.close()
        self._writer.shutdown(wait=True)

    def _message(self) -> ReadBlock | ClipEnd | ReaderFailure | None:
        with contextlib.suppress(queue.Empty):
            return self._readers.queue.get(timeout=0.02)
        return None

    def _take(self, message: ReadBlock | ClipEnd | ReaderFailure) -> None:
        if isinstance(message, ReaderFailure):
            raise message.error
        spool = self._spool(message.shard)
        if isinstance(message, ReadBlock):
            spool.expect()
            self._send(self._batcher.add(message))
            return
        if message.reason is None:
            spool.end(message.clip, message.blocks, message.frames, message.height, message.width)
            self._blocks[message.clip] = message.blocks
            self._count(message.clip)
        else:
            spool.reject(message.clip, message.name, message.path, message.reason)
        self._progress.rejected += message.reason is not None
        self._advance(self._progress)
        self._close_old_shards()
        self._finish_complete(message.shard)

    def _count(self, clip: int) -> None:
        """Count a clip that was read to its end, if all of its blocks are encoded."""
        if self._blocks.get(clip) == self._encoded[clip]:
            self._progress.clips += 1
            del self._blocks[clip], self._encoded[clip]

    def _spool(self, number: int) -> ShardSpool:
        if number not in self._spools:
            self._spools[number] = ShardSpool(self._plan, number, self._scratch)
        return self._spools[number]

    def _send(self, batch: Batch | None) -> None:
        if batch is None:
            return
        if self._encoding.full:
            self._collect(wait=True)
        self._encoding.submit(batch)

    def _close_old_shards(self) -> None:
        """Do not let rare shapes keep shards unfinished until the end."""
        read = [n for n, spool in self._spools.items() if not spool.waiting]
        for number in read[:-_OPEN_SHARDS]:
            for batch in self._batcher.flush_shard(number):
                self._send(batch)

    def _collect(self, wait: bool) -> None:
        done = [future for future in self._writing if future.done()]
        for future in done:
            self._writing.remove(future)
            future.result()
        for block, record in self._encoding.results(wait):
            self._budget.give(block.padded.nbytes)
            self._spools[block.shard].add(block.clip, record)
            self._encoded[block.clip] += 1
            self._count(block.clip)
            self._progress.tokens += record.count
            self._progress.bytes += record.frames * record.height * record.width * 3
            self._advance(self._progress)
            self._finish_complete(block.shard)

    def _finish_complete(self, number: int) -> None:
        if number in self._spools and self._spools[number].complete:
            self._finish(self._spools.pop(number))

    def _finish(self, spool: ShardSpool) -> None:
        self._writing.append(self._writer.submit(spool.finish))


def rates(progress: Progress, began: float) -> dict[str, float]:
    """Clips, tokens and gigabytes of frames per unit of time since `began` (time.monotonic)."""
    seconds = max(time.monotonic() - began, 1e-9)
    return {
        "videos_per_second": progress.clips / seconds,
        "tokens_per_second": progress.tokens / seconds,
        "gigabytes_per_hour": progress.bytes / seconds * 3600 / 1e9,
    }


CARD_TEXT = "DATASET_CARD.md"
_SUMS = ("clips", "records", "frames", "seconds", "pixels", "tokens", "raw_bits", "stored_bits",
         "bytes", "file_bytes", "with_caption")  # fmt: skip


def write_card(plan: ExportPlan) -> dict[str, Json] | None:
    """Describe the dataset when all its shards are finished: the card; None when some are not.

    It depends on the shards alone: whichever process comes last writes the same.
    """
    reports = plan.job.reports()
    if reports is None:
        return None
    output, provenance, options = epath.Path(plan.output), plan.provenance, plan.options
    card = _card(plan, reports, len(plan.job.write_rejected(reports)), _counts(plan))
    plan.job.write_metadata(
        tfds_features(
            provenance.bits, len(provenance.grids), options.compress, bool(options.flip)
        ),
        [report["records"] for report in reports], card["bytes"],
        "Video tokens exported by pyratok_jax.export_tokens.",
    )  # fmt: skip
    write_text(output / CARD_TEXT, card_text(card))
    write_json(output / CARD, card)
    return card


def _counts(plan: ExportPlan) -> np.ndarray:
    shape = len(plan.provenance.grids), 2 ** counted_bits(plan.provenance.bits)
    total = np.zeros(shape, np.int64)
    for number in range(plan.options.shards):
        path = plan.job.report_path(number, "npz")
        advice = "remove it, so that the shard is written again"
        with refusing(str(path), advice):
            total += read_npz(path, advice=advice)["counts"]
    return total


def _card(
    plan: ExportPlan, reports: list[dict[str, Json]], rejected: int, counts: np.ndarray
) -> dict[str, Json]:
    sums = {key: sum(report[key] for report in reports) for key in _SUMS}
    pixels, p = max(sums["pixels"], 1), plan.provenance
    levels = []
    for (dt, ds), row in zip(p.grids, counts, strict=True):
        levels.append({"stride_time": dt, "stride_space": ds, **usage(row, p.vocabulary)})
    return {
        "schema": SCHEMA_VERSION,
        "format": plan.options.format,
        "shards": plan.options.shards,
        **sums,
        "rejected": rejected,
        "hours": sums["seconds"] / 3600,
        "bits": p.bits,
        "vocabulary": p.vocabulary,
        "bpp_raw": sums["raw_bits"] / pixels,
        "bpp_stored": sums["stored_bits"] / pixels,
        "levels": levels,
        "checkpoint": p.checkpoint,
        "encoder_code": p.code,
        "text_encoder": p.text_encoder,
        "source": plan.source,
        "options": plan.to_dict()["options"],
        "feature_spec": feature_spec(
            p.bits, len(p.grids), plan.options.compress, bool(plan.options.flip)
        ),
    }


def card_text(card: dict[str, Json]) -> str:
    """The card as Markdown."""
    rows = [
        ("clips", card["clips"]), ("rejected clips", card["rejected"]),
        ("records", card["records"]), ("frames", card["frames"]),
        ("hours", f"{card['hours']:.4f}"), ("with a caption", card["with_caption"]),
        ("tokens", card["tokens"]), ("bits per token", card["bits"]),
        ("valid codes", card["vocabulary"]), ("bytes of all shards", card["file_bytes"]),
        ("bits per pixel, raw", f"{card['bpp_raw']:.5f}"),
        ("bits per pixel, as stored", f"{card['bpp_stored']:.5f}"),
        ("tokens are entropy-coded", "yes" if card["options"]["compress"] else "no"),
        ("checkpoint", card["checkpoint"] or "unnamed"), ("encoder code", card["encoder_code"]),
        ("text encoder", card["text_encoder"] or "none (null embedding)"),
        ("source", card["source"]), ("schema", card["schema"]),
    ]  # fmt: skip
    if card["options"].get("flip"):
        rows.append(("bits flipped for training a prior, at most", card["options"]["flip"]))
    lines = ["# Video tokens", "", "Written by `python -m pyratok_jax.export_tokens`.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {cell(value)} |" for name, value in rows), ""]
    lines += ["## Use of the codes", ""]
    lines += ["| level | stride (time, space) | tokens | codes used | share | entropy, bits |"]
    lines += ["|---|---|---|---|---|---|"]
    for number, level in enumerate(card["levels"], start=1):
        lines.append(
            f"| {number} | {level['stride_time']}, {level['stride_space']} | {level['tokens']} | "
            f"{level['used']} | {level['utilisation']:.4f} | {level['entropy']:.3f} |"
        )
    lines += ["", "How many codes occur how often:", ""]
    for number, level in enumerate(card["levels"], start=1):
        bins = ", ".join(f"{k} times: {v}" for k, v in level["histogram"].items())
        lines.append(f"- level {number}: {bins}")
    lines += ["", "## Feature spec", "", "```python", "feature_spec = {"]
    lines += [f'    "{key}": {value},' for key, value in card["feature_spec"].items()]
    lines += ["}", "```", "", _READING, ""]
    return "\n".join(lines)


_READING = """## Reading

```python
import tensorflow_datasets as tfds
source = tfds.builder_from_directory(FOLDER).as_data_source(split="train")

from pyratok_jax.tokens import TokenDataset
record = TokenDataset(FOLDER)[0]
```"""
