"""One shard of an export while it grows, and its report when it is finished.

Tokens arrive in the order in which batches were done. They are kept in a scratch file until the
shard is whole; then the records are written in the order of clips and blocks, so that a shard's
bytes do not depend on that order, and the file takes its name. The report comes last: a shard with
a report is finished.
"""

import dataclasses
import errno
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.records import parse_example
from pyratok_jax.io.sharded_job import Rejection, Report
from pyratok_jax.io.shards import ShardWriter, open_records
from pyratok_jax.metrics.code_usage import count_codes, counted_bits
from pyratok_jax.tokens.plan import ExportPlan
from pyratok_jax.tokens.schema import TokenRecord, decode_record, encode_record

# Uncompressed, so that the records of a damaged file can be found.
ARRAY_RECORD_OPTIONS = "group_size:1,uncompressed"
_TOTALS = ("records", "frames", "seconds", "pixels", "tokens", "raw_bits", "stored_bits", "bytes",
           "with_caption")  # fmt: skip


class ShardSpool:
    """Collects the blocks of one shard.

    Call `expect` for every block that is sent to be encoded, `add` when it is, and `end` or
    `reject` when a clip was read; the shard is `complete` when all clips were and no block is
    outstanding.
    """

    def __init__(self, plan: ExportPlan, number: int, scratch: Path) -> None:
        self.plan, self.number = plan, number
        self.waiting = len(plan.clips_of(number))
        self._outstanding = 0
        self._scratch = scratch
        self._path = scratch / f"{number:05d}.spool"
        self._size = 0
        self._places: dict[tuple[int, int], tuple[int, int]] = {}
        self._ends: dict[int, dict[str, int]] = {}
        self.rejected: dict[int, Rejection] = {}

    @property
    def complete(self) -> bool:
        """Whether nothing is missing any more."""
        return not self.waiting and not self._outstanding

    def expect(self) -> None:
        """A block of the shard is on its way to be encoded."""
        self._outstanding += 1

    def add(self, clip: int, record: TokenRecord) -> None:
        """An encoded block of a clip."""
        data = encode_record(record)
        self._places[clip, record.block] = self._size, len(data)
        # Not kept open: thousands of shards may be unfinished at once.
        with self._path.open("ab") as file:
            file.write(data)
        self._size += len(data)
        self._outstanding -= 1

    def end(self, clip: int, blocks: int, frames: int, height: int, width: int) -> None:
        """A clip was read to its end."""
        self.waiting -= 1
        self._ends[clip] = {
            "blocks": blocks, "video_frames": frames, "video_height": height, "video_width": width,
        }  # fmt: skip

    def reject(self, clip: int, name: str, path: str, reason: str) -> None:
        """A clip cannot be read; none of its blocks is kept."""
        self.waiting -= 1
        self.rejected[clip] = {"id": name, "path": path, "reason": reason}

    def finish(self) -> Report:
        """Write the shard, its code counts and its report, which is returned."""
        plan, options = self.plan, self.plan.options
        bits = plan.provenance.bits
        counts = np.zeros((len(plan.provenance.grids), 2 ** counted_bits(bits)), np.int64)
        totals = dict.fromkeys(_TOTALS, 0)
        local = self._scratch / plan.job.shard_name(self.number)
        with (
            ShardWriter(local, options.format, ARRAY_RECORD_OPTIONS) as writer,
            self._path.open("ab+") as file,
        ):
            for clip, block in sorted(self._places):
                if clip in self.rejected:
                    continue
                record = self._read(file, clip, block)
                data = encode_record(record, options.compress)
                writer.write(data)
                count_codes(record.tokens, counts, bits)
                _add_totals(totals, record, data, options.compress)
        if len(open_records(str(local))) != totals["records"]:
            raise OSError(errno.EIO, "the written shard does not hold all its records")
        npz = self._scratch / f"{self.number:05d}.npz"
        np.savez_compressed(npz, counts=counts)
        report = plan.job.publish(
            self.number, local,
            {"clips": len(self._ends), **totals,
             "rejected": [self.rejected[clip] for clip in sorted(self.rejected)]},
            companions={"npz": npz},
        )  # fmt: skip
        self.close()
        return report

    def _read(self, file: BinaryIO, clip: int, block: int) -> TokenRecord:
        offset, length = self._places[clip, block]
        file.seek(offset)
        record = decode_record(file.read(length), f"{self._path}@{offset}", spooled=True)
        ends: dict[str, Json] = self._ends[clip]
        name = record.video if ends["blocks"] == 1 else f"{record.video}#{block:05d}"
        return dataclasses.replace(record, id=name, **ends)

    def close(self) -> None:
        """Remove the scratch file."""
        self._path.unlink(missing_ok=True)


def _add_totals(totals: dict[str, Json], record: TokenRecord, data: bytes, packed: bool) -> None:
    raw = record.count * record.bits
    totals["records"] += 1
    if record.block == 0:
        totals["frames"] += record.video_frames
        totals["seconds"] += record.video_frames / record.fps
        totals["pixels"] += record.video_frames * record.video_height * record.video_width
        totals["with_caption"] += bool(record.caption)
    totals["tokens"] += record.count
    totals["raw_bits"] += raw
    totals["stored_bits"] += _packed_bits(data) if packed else raw
    totals["bytes"] += len(data)


def _packed_bits(data: bytes) -> int:
    feature = parse_example(data)
    # Not what was read, which decodes to no video.
    packed = (key for key in feature if key.startswith("packed_"))
    return sum(8 * len(feature[key].bytes_list.value[0]) for key in packed)


def is_complete(report: Report) -> bool:
    """Whether a report has all the numbers that the card adds up."""
    return all(isinstance(report.get(key), int | float) for key in ("clips", *_TOTALS))


def full_disk(output: str, finished: int, shards: int) -> UserError:
    """What to tell the user then."""
    return UserError(
        f"the disk of {output} is full: {finished} of {shards} shards are finished and valid, the "
        "unfinished ones are not kept; make room and run the same command again to resume"
    )
