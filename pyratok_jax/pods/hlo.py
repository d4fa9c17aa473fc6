"""Parse optimised TPU HLO: estimated cycles, collectives, costliest operations.

The compiler annotates every operation with `estimated_cycles`. A loop's body is
printed once; where its trip count is stated (`known_trip_count`, or a condition that compares a
counter with a constant, as scans have) everything inside counts that often, otherwise once, and
`HloProgram.open_loops` counts the loops without a stated trip count. Kernels have no estimate; they
count what `pods.kernels` finds.

Collectives between slices are not printed as collectives: every chip sends to its host and receives
the result from it (`send` and `recv` with an attribute that names the collective and its slices),
after a collective within the slice where more chips take part.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

BYTES = {
    "pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1,
    "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}])([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+(?:fn)?)?)\[([\d,]*)\]")
_CALLS = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|true_computation|"
    r"false_computation|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LIMIT = re.compile(r"^s32\[\]\S* constant\((\d+)\)")
_COUNTER = re.compile(r"compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
# The compiler prints the largest number for what it cannot estimate (scatters, for example).
_UNKNOWN = 2**48
_KERNEL = 'custom_call_target="tpu_custom_call"'
_METADATA = re.compile(r"kernel_metadata=\{\n[^\n]*\n\}")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_ASYNC, _ASYNC_START = "async_collective_fusion_config", "async-collective-start"
_WHERE = re.compile(r'op_name="([^"]*)"')
_ACROSS = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_ACROSS_KINDS = {"ONE_TO_ONE": "collective-permute"}
# Slices of one group: the first of "{1,2}x{0:3}" (slices x chips), or of {{100000,200000},...}.
_SLICES = re.compile(r'_xla_megascale_target=(?:"|\{)\{([\d,:]+)')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    opcode: str
    shape: str
    text: str
    calls: tuple[tuple[str, str], ...]
    cycles: int
    unknown: bool

    @property
    def where(self) -> str:
        """The operation of the model that this was lowered from."""
        found = _WHERE.search(self.text)
        return found[1] if found else self.name


@dataclasses.dataclass
class Collective:
    """Collectives of one type.

    Attributes:
        count: how often one runs in a step.
        bytes: that one chip sends over all of them, with ring algorithms.
        across_slices: of these, in groups that reach over slices.
    """

    count: float = 0
    bytes: float = 0
    across_slices: float = 0


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations of one name and one shape, summed."""

    where: str
    shape: str
    count: float
    cycles: float


class HloProgram:
    """An optimised program, taken from its text.

    Args:
        text: as the compiler prints it.
        kernels: cycles of kernels, by the name of their operation.
    """

    def __init__(self, text: str, kernels: Mapping[str, int] | None = None):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] = []
        for line in _lines(text):
            header = _HEADER.match(line)
            if header:
                current = self.computations.setdefault(header[2], [])
                self.entry = header[2] if header[1] else self.entry
                continue
            found = _LINE.match(line)
            if found:
                one = _instruction(found[1], found[2])
                if _KERNEL in one.text:
                    cycles = (kernels or {}).get(one.name)
                    one = dataclasses.replace(one, cycles=cycles or 0, unknown=cycles is None)
                current.append(one)
        for name, body in self.computations.items():
            if name.startswith("all-reduce-scatter"):
                body[:] = _as_scatter(body)
        _drop_continuations(self.computations)
        self.open_loops = 0
        self._runs = list(self._walk(self.entry, 1.0)) if self.entry else []

    def _walk(self, name: str, times: float) -> Iterator[tuple[Instruction, float]]:
        """Every instruction that runs, with how often."""
        for one in self.computations.get(name, []):
            yield one, times
            inner = times
            if one.opcode == "while":
                trips = self._trips(one)
                self.open_loops += trips is None
                inner = times * (trips or 1)
            for role, callee in one.calls:
                # Reducers are counted with what they reduce.
                if role != "to_apply" or one.opcode == "call":
                    yield from self._walk(callee, inner)

    def _trips(self, loop: Instruction) -> int | None:
        """The trip count of a loop, where it is stated."""
        stated = _TRIPS.search(loop.text)
        if stated:
            return int(stated[1])
        condition = self.computations.get(dict(loop.calls).get("condition", ""), [])
        constants = {one.name: found[1] for one in condition if (found := _LIMIT.search(one.text))}
        for one in condition:
            compared = _COUNTER.search(one.text)
            if compared and compared[1] in constants:
                return int(constants[compared[1]])
        return None

    @property
    def cycles(self) -> float:
        """Estimated cycles of one step on one chip, all operations one after the other."""
        return sum(one.cycles * times for one, times in self._runs)

    @property
    def unknown(self) -> list[str]:
        """Operations without an estimate; they count 0."""
        return sorted({short_name(one.where) for one, _ in self._runs if one.unknown})

    def costliest(self, top: int = 10) -> list[Cost]:
        """Operations summed by name and shape, costliest first."""
        groups: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        for one, times in self._runs:
            if one.cycles:
                key = (short_name(one.where), one.shape.split("{")[0].lstrip("("))
                groups[key].append((times, one.cycles * times))
        costs = [
            Cost(where, shape, sum(n for n, _ in runs), sum(c for _, c in runs))
            for (where, shape), runs in groups.items()
        ]
        return sorted(costs, key=lambda cost: -cost.cycles)[:top]

    def by_part(self, parts: tuple[str, ...]) -> dict[str, float]:
        """Cycles by the first of `parts` that an operation's name contains; the rest: other."""
        sums = dict.fromkeys((*parts, "other"), 0.0)
        for one, times in self._runs:
            if one.cycles:
                key = next((part for part in parts if part in one.where), "other")
                sums[key] += one.cycles * times
        return sums

    def collectives(self, chips_per_slice: int = 0) -> dict[str, Collective]:
        """Collectives by type; a group reaches over slices when its chips are in several."""
        found: dict[str, Collective] = {}
        for one, times in self._runs:
            crossing = across_slices(one)
            if crossing:
                entry = found.setdefault(crossing[0], Collective())
                entry.count += times
                entry.bytes += times * crossing[1]
                entry.across_slices += times * crossing[1]
                continue
            kind = one.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            size, groups = result_bytes(one), device_groups(one.text)
            members = len(groups[0]) if groups else 1
            entry = found.setdefault(kind, Collective())
            sent = times * sent_bytes(kind, size, members)
            entry.count += times
            entry.bytes += sent
            if chips_per_slice and any(len({d // chips_per_slice for d in g}) > 1 for g in groups):
                entry.across_slices += sent
        return found

    def gathers(self) -> list[tuple[str, str, int]]:
        """Every all-gather: the model's operation, its result's type and its bytes, largest first.

        For tests that something is never gathered.
        """
        rows = [
            (one.where, _result(one), result_bytes(one))
            for one, _ in self._runs
            if one.opcode in ("all-gather", "all-gather-start")
        ]
        return sorted(rows, key=lambda row: -row[2])


def _lines(text: str) -> list[str]:
    """One for each instruction: metadata of kernels is printed over several."""
    return _METADATA.sub(lambda found: found[0].replace("\n", ""), text).splitlines()


def kernel_operations(text: str) -> dict[str, str]:
    """Names of a program's kernels, and the model's operations that they were lowered from."""
    lines = (_LINE.match(line) for line in _lines(text) if _KERNEL in line)
    found = (_instruction(line[1], line[2]) for line in lines if line)
    return {one.name: one.where for one in found}


def _instruction(name: str, rest: str) -> Instruction:
    # The type comes before the opcode, and may hold parentheses of its own (layouts, tuples).
    clean = re.sub(r"\{[^{}]*\}", "", rest.split(", metadata=")[0].split(", backend_config=")[0])
    opcode = _OPCODE.search(clean)
    shape = clean[: opcode.start()].strip() if opcode else clean
    calls = [
        (role, callee.strip().lstrip("%"))
        for role, names in _CALLS.findall(rest)
        for callee in names.strip("{}").split(",")
    ]
    found = _CYCLES.search(rest)
    cycles = int(found[1]) if found else 0
    return Instruction(
        name,
        opcode[1] if opcode else "",
        shape,
        rest,
        tuple(calls),
        0 if cycles > _UNKNOWN else cycles,
        cycles > _UNKNOWN,
    )


def _drop_continuations(computations: dict[str, list[Instruction]]) -> None:
    """Count an asynchronous collective once, at its start.

    The compiler prints it again in every fusion that overlaps with it, and in its end.
    """
    calls = [
        (one, callee) for body in computations.values() for one in body for _, callee in one.calls
    ]
    starts = {callee for one, callee in calls if one.name.startswith(_ASYNC_START)}
    begun = {
        _channel(one) for name in starts for one in computations.get(name, []) if _channel(one)
    }
    for name, body in computations.items():
        if name not in starts:
            body[:] = [
                dataclasses.replace(one, opcode=f"{one.opcode}-continued")
                if _channel(one) in begun and _ASYNC in one.text
                else one
                for one in body
            ]


def _channel(one: Instruction) -> str:
    found = _CHANNEL.search(one.text)
    return found[1] if found else ""


def _as_scatter(body: list[Instruction]) -> list[Instruction]:
    """A reduction of which each chip keeps its own part: sent as a reduce-scatter."""
    return [
        dataclasses.replace(one, opcode="reduce-scatter", shape=body[-1].shape)
        if one.opcode == "all-reduce"
        else one
        for one in body
    ]


def short_name(op_name: str) -> str:
    """The last 70 characters of an operation's name, without the outermost transformation."""
    return "/".join(op_name.split("/")[1:])[-70:] or op_name


def shape_bytes(shape: str) -> list[int]:
    """Bytes of every array in a type."""
    return [
        BYTES[kind] * int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64))
        for kind, dims in _SHAPE.findall(shape)
        if kind in BYTES
    ]


def _result(one: Instruction) -> str:
    """The type of what a collective gives; of a started one, which also names its operand."""
    arrays = [f"{kind}[{dims}]" for kind, dims in _SHAPE.findall(one.shape)]
    if one.opcode.endswith("-start") and len(arrays) > 1:
        wide = [array for array in arrays if not array.startswith(("u32[]", "s32[]"))]
        half = len(wide) // 2 or 1
        arrays = wide[half:] or wide
    return ", ".join(arrays)


def result_bytes(one: Instruction) -> int:
    """Bytes of what a collective gives on one chip."""
    return sum(shape_bytes(_result(one)))


def sent_bytes(kind: str, size: float, members: int) -> float:
    """What one chip of `members` sends for a collective whose result has `size` bytes."""
    share = (members - 1) / members if members > 1 else 0.0
    if kind == "collective-permute":
        return size
    if kind == "all-reduce":
        return 2 * size * share
    if kind == "reduce-scatter":
        return size * (members - 1)
    return size * share


def across_slices(one: Instruction) -> tuple[str, float] | None:
    """Kind of a collective between slices, and the bytes that a chip sends; None for others.

    Of its two operations the one that receives the result counts.
    """
    found = _ACROSS.search(one.text) if one.opcode == "recv" else None
    if found is None:
        return None
    kind = _ACROSS_KINDS.get(found[1], found[1].lower().replace("_", "-"))
    size = shape_bytes(one.shape)[0]
    slices = _SLICES.search(one.text)
    return kind, sent_bytes(kind, size, _members(slices[1]) if slices else 1)


def _members(written: str) -> int:
    """How many numbers `1,2,5:7` names."""
    ends = ([int(n) for n in part.split(":")] for part in written.split(","))
    return sum(pair[-1] - pair[0] + 1 for pair in ends)


def device_groups(text: str) -> list[list[int]]:
    """Devices of each group of a collective, in any printed notation; pairs of a permute."""
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", text)
    explicit = pairs or re.search(r"replica_groups=\{(\{.*?\})\}", text)
    if explicit:
        return [
            [int(n) for n in group.split(",") if n]
            for group in re.findall(r"\{([\d,\s]*)\}", explicit[1])
        ]
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text)
    if axes:
        return _groups_of_axes(axes[1], axes[2])
    found = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        return []
    shape, dims = ([int(n) for n in found[i].split(",")] for i in (1, 2))
    numbers = np.arange(int(np.prod(dims))).reshape(dims)
    if found[3]:
        numbers = numbers.transpose([int(n) for n in found[3].split(",")])
    return numbers.reshape(shape).tolist()


def _groups_of_axes(mesh: str, members: str) -> list[list[int]]:
    """Groups along some axes of a mesh: `'a'=4,'b'=16` and `'a'`, or `'b':(4)2` for a part of one.

    A part `(before)size` is the axis cut into before x size x the rest.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
    wanted = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", members)
    shape: list[int] = []
    chosen: list[int] = []
    for name, size in sizes.items():
        cuts = {1, size}
        parts = [(int(before or 1), int(part or size)) for n, before, part in wanted if n == name]
        for before, part in parts:
            cuts |= {before, before * part}
        edges = sorted(cuts)
        for low, high in zip(edges, edges[1:], strict=False):
            if any(before <= low and high <= before * part for before, part in parts):
                chosen.append(len(shape))
            shape.append(high // low)
    numbers = np.arange(int(np.prod(shape or [1]))).reshape(shape or [1])
    others = [i for i in range(numbers.ndim) if i not in chosen]
    count = int(np.prod([shape[i] for i in chosen])) if chosen else 1
    return numbers.transpose([*others, *chosen]).reshape(-1, count).tolist()
