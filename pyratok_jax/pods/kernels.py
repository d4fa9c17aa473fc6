"""Cycles of Pallas kernels, for which the compiler prints no estimate: counted from its schedules.

A kernel is compiled to bundles of instructions, of which a core issues one per cycle, and libtpu
can write them down. Of a kernel of `models.language.fused_attention` the name of its operations
says how often each part runs; a part's bundles, or the time that its products take at the peak
where that is longer, are its cycles. Waiting for memory is not in them: a block moves up to two
thirds of what the memory could in the time that it is computed.
"""

import contextlib
import itertools
import math
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from pyratok_jax.models.language.fused_attention import KernelWork
from pyratok_jax.pods.topology import Chip, schedules_folder

_NAME = re.compile(r"^\d+-(.+)-\d+-final_bundles\.txt$")
_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(LB|LH|LE|PB|PF|CT)?\s*:")
_BRANCH = re.compile(r"sbr\.rel \((!?)%\w+\) target = \$region")
_TRIPS = re.compile(r", (\d+) /\* loop exit test \*/")
# Products of a block by the pass that a kernel's name has: scores and sums of values; scores,
# gradients of the weights and of queries; the same two, and gradients of keys and of values.
_PRODUCTS = {"_fwd": 2, "_dq": 3, "_dkv": 4}
_PIPELINE = 2  # trips of a grid's loop beyond its steps: the first copies in and the last out


def take_schedules(names: Collection[str]) -> dict[str, str]:
    """The schedules of these operations, of those written since the last call; the rest goes."""
    found: dict[str, str] = {}
    # In the order in which they were written, the last of a name counts.
    for file in sorted(schedules_folder().glob("*.txt")):
        name = _NAME.match(file.name)
        if name and name[1] in names:
            found[name[1]] = file.read_text(errors="replace")
    shutil.rmtree(schedules_folder(), ignore_errors=True)
    return found


class UnknownListing(ValueError):
    """A schedule that is written in another way than that of a kernel over a grid."""


class Schedule(NamedTuple):
    """Bundles of a kernel over a grid.

    Attributes:
        trips: of the loop over the grid.
        step: bundles of every trip.
        compute: of the part that computes a block.
        edges: of the parts that begin and end a row of blocks.
    """

    trips: int
    step: int
    compute: int
    edges: int

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """From the compiler's listing.

        Parts that are skipped by a branch are the beginning of a row, a block, and the end of a
        row; a block's is by far the longest.

        Raises:
            UnknownListing: there is no loop with such parts.
        """
        marks = list(_marks(text))
        trips = [int(n) for n in _TRIPS.findall(text)]
        begin = next((at for at, label, _ in marks if label == "LB"), None)
        ends = [at for at, _, branch in marks if branch == "back"]
        if begin is None or not ends or not trips:
            raise UnknownListing("the schedule has no loop over a grid")
        inner = [mark for mark in marks if begin <= mark[0] < ends[-1]]
        parts = [
            following[0] - at
            for (at, _, branch), following in itertools.pairwise([*inner, (ends[-1], "", "")])
            if branch == "skip"
        ]
        if not parts:
            raise UnknownListing("the schedule has no part that is skipped")
        compute, edges = max(parts), sum(parts) - max(parts)
        return cls(max(trips), ends[-1] - begin - compute - edges, compute, edges)


def _marks(text: str) -> Iterator[tuple[int, str, str]]:
    """(address, label, branch) of bundles with a label or a branch: "skip" ahead or "back"."""
    mark: tuple[int, str, str] | None = None
    for line in text.splitlines():
        found = _BUNDLE.match(line)
        if found:
            if mark and (mark[1] in ("LB", "PF") or mark[2]):
                yield mark
            mark = (int(found[1], 16), found[2] or "", "")
        branch = _BRANCH.search(line)
        if branch and mark:
            mark = (*mark[:2], "back" if branch[1] else "skip")
    if mark and (mark[1] in ("LB", "PF") or mark[2]):
        yield mark


def attention_cycles(schedule: Schedule, work: KernelWork, chip: Chip, name: str) -> int:
    """Cycles of one call on one chip.

    Its cores share clips and heads in the forward pass, whole clips alone in the backward one.

    Args:
        schedule, work, chip: of the call.
        name: of the operation, which says what pass it is.

    Raises:
        ValueError: the name is of no pass.
    """
    products = next((n for part, n in _PRODUCTS.items() if part in name), 0)
    if not products:
        raise ValueError(f"{name}: expected one of {', '.join(_PRODUCTS)} in a kernel's name")
    blocks = work.blocks
    flops = products * 2 * blocks.queries * blocks.keys * work.head_dim
    block = max(schedule.compute, flops * chip.clock * chip.cores / chip.peak)
    # A row is what is summed up before it is written: of queries, or of keys for their gradients.
    rows = blocks.columns if "_dkv" in name else blocks.rows
    each = blocks.computed * block + rows * schedule.edges
    steps = (schedule.trips - _PIPELINE) * schedule.step
    shared = work.clips * work.heads / chip.cores
    if "_fwd" not in name:
        shared = math.ceil(work.clips / chip.cores) * work.heads
    return round(steps + shared * each)


def kernel_cycles(
    operations: Mapping[str, str], schedules: Mapping[str, str], chip: Chip
) -> dict[str, int]:
    """Cycles of the kernels whose work and schedule are known.

    Args:
        operations: names of custom calls, and the model's operations that they were lowered from.
        schedules: their listings.
        chip: they run on.
    """
    found: dict[str, int] = {}
    for name, where in operations.items():
        work = KernelWork.parse(where)
        if work is not None and name in schedules:
            # Another compiler may write its listings otherwise: no estimate then.
            with contextlib.suppress(UnknownListing):
                schedule = Schedule.parse(schedules[name])
                found[name] = attention_cycles(schedule, work, chip, name)
    return found
