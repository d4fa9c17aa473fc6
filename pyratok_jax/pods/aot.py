"""Ahead-of-time compilation for TPUs: the optimised HLO and the memory that it needs per chip.

The compiler dumps what it makes (`xla_dump_to`). That gives the optimised program as it prints it
itself (reading it back through the runtime fails for some programs), and the buffer assignment,
which is ready long before code generation ends. A refusal for lack of HBM is parsed too.
"""

import dataclasses
import re
import threading
import time
from pathlib import Path
from typing import Any

import jax

from pyratok_jax.pods.hlo import HloProgram, kernel_operations
from pyratok_jax.pods.kernels import kernel_cycles, take_schedules
from pyratok_jax.pods.topology import GIBIBYTE, Chip

# Compiler effort. On one stage of the VAE's encoder "medium" took a third of the time of "full" for
# a program of 1.3 times the cycles, "low" a seventh for twice the cycles. "memory" is "full" until
# buffers are assigned, without waiting for code generation: there are no cycles then.
EFFORTS: dict[str, dict[str, str]] = {
    "full": {},
    "medium": {"xla_optimization_level": "EFFORT_O1"},
    "low": {"xla_optimization_level": "EFFORT_O0"},
    "memory": {},
}
_PROGRAM = "*.after_codegen.txt"
_EARLY_PROGRAM = "*.after_optimizations.txt"
_ASSIGNMENT = "*.after_optimizations-buffer-assignment.txt"
_LOOK_EVERY = 1.0  # seconds
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm\.\s*Exceeded hbm capacity by {_SIZE}")
_NEEDED = re.compile(
    rf"total memory required for [\w ]+ \({_SIZE}\) exceeds available HBM \({_SIZE}\)"
)
_PART = re.compile(rf"^\s+(reserved|program|arguments)\s+{_SIZE}\s*$", re.MULTILINE)
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class HbmUsage:
    """HBM of one chip in bytes.

    Attributes:
        arguments, outputs, temporaries, code: by kind.
        aliased: outputs that reuse the memory of arguments.
        used: peak of all together.
        capacity: that a program may use on this chip.
    """

    arguments: float = 0.0
    outputs: float = 0.0
    temporaries: float = 0.0
    aliased: float = 0.0
    code: float = 0.0
    used: float = 0.0
    capacity: float = 0.0

    @property
    def exceeded(self) -> float:
        """What is missing; 0 when the program fits."""
        return max(self.used - self.capacity, 0.0)

    @property
    def fits(self) -> bool:
        """Whether the program can be loaded and run."""
        return not self.exceeded

    @property
    def verdict(self) -> str:
        """In words, in units of 2^30 bytes, as the compiler counts."""
        if self.fits:
            return f"fits ({(self.capacity - self.used) / GIBIBYTE:.1f} GB free)"
        return f"does not fit by {self.exceeded / GIBIBYTE:.1f} GB"


@dataclasses.dataclass
class Compiled:
    """What the compiler gives for a program.

    Attributes:
        memory: None when it fails before buffers are assigned, for another reason than memory.
        text: the optimised HLO; empty when there is none.
        costs: its cost analysis.
        schedules: of its kernels, by the name of their operation.
        error: a failure for another reason than memory, else empty.
    """

    memory: HbmUsage | None = None
    text: str = ""
    costs: dict[str, float] = dataclasses.field(default_factory=dict)
    schedules: dict[str, str] = dataclasses.field(default_factory=dict)
    error: str = ""

    def program(self, chip: Chip) -> HloProgram:
        """The program with the cycles of its kernels on this chip."""
        return HloProgram(
            self.text, kernel_cycles(kernel_operations(self.text), self.schedules, chip)
        )


def compile_into(lowered: jax.stages.Lowered, effort: str, folder: Path) -> Compiled:
    """Compile with dumps into an empty folder."""
    asked: dict[str, Any] = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
    options = EFFORTS[effort] | asked
    if effort == "memory":
        return _without_code(lowered, options, folder)
    take_schedules(())
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        return _failure(error, folder)
    found = memory_of_files(folder)
    analysis = compiled.memory_analysis()
    code = analysis.generated_code_size_in_bytes if analysis else 0
    memory = dataclasses.replace(found, code=code, used=found.used + code)
    text = _newest(folder, _PROGRAM)
    schedules = take_schedules(kernel_operations(text))
    return Compiled(memory, text, compiled.cost_analysis() or {}, schedules)


def _failure(error: Exception, folder: Path) -> Compiled:
    memory = parse_exhausted(str(error))
    if memory is not None:
        return Compiled(memory)
    # It may have assigned more memory than there is: some versions then fail on the size of a
    # single array.
    assigned = memory_of_files(folder) if any(folder.glob(_ASSIGNMENT)) else None
    return Compiled(assigned, error=" ".join(str(error).split())[:500])


def _without_code(lowered: jax.stages.Lowered, options: dict[str, Any], folder: Path) -> Compiled:
    """Return once buffers are assigned; the compiler is left running in its thread.

    The optimised program and the assignment are written one after the other: both must be complete.
    """
    failures: list[Exception] = []

    def run() -> None:
        try:
            lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    sizes = [0, 0]
    while thread.is_alive():
        time.sleep(_LOOK_EVERY)
        now = [
            sum(file.stat().st_size for file in folder.glob(pattern))
            for pattern in (_ASSIGNMENT, _EARLY_PROGRAM)
        ]
        # The same sizes twice: the files are complete.
        if all(now) and now == sizes:
            return Compiled(memory_of_files(folder), _newest(folder, _EARLY_PROGRAM))
        sizes = now
    if failures:
        return _failure(failures[0], folder)
    # Compiled before the first look: report the same facts as for larger programs.
    return Compiled(memory_of_files(folder), _newest(folder, _EARLY_PROGRAM))


def memory_of_files(folder: Path) -> HbmUsage:
    """HBM by kind of the program that was dumped into a folder."""
    return parse_assignment(_newest(folder, _ASSIGNMENT))


def _newest(folder: Path, pattern: str) -> str:
    files = sorted(folder.glob(pattern), key=lambda file: file.stat().st_size)
    # Small helper programs may be compiled beside it.
    return files[-1].read_text(errors="replace") if files else ""


def parse_assignment(text: str) -> HbmUsage:
    """HBM by kind from a dump of the buffer assignment.

    Buffers in memory spaces other than HBM have a colour and do not count.
    """
    sums = {"arguments": 0.0, "outputs": 0.0, "aliased": 0.0, "temporaries": 0.0}
    for size, rest in _ALLOCATION.findall(text):
        if re.search(r"\bcolor [1-9]", rest):
            continue
        argument, result = " parameter " in rest, "maybe-live-out" in rest
        if argument:
            sums["arguments"] += int(size)
        if result:
            sums["outputs"] += int(size)
        if argument and result:
            sums["aliased"] += int(size)
        if not argument and not result:
            sums["temporaries"] += int(size)
    used = sums["arguments"] + sums["outputs"] - sums["aliased"] + sums["temporaries"]
    return HbmUsage(**sums, used=used)


def parse_exhausted(message: str) -> HbmUsage | None:
    """HBM as an out-of-memory error states it; None for another error."""
    found = _USED.search(message)
    if found is not None:
        used, capacity = _bytes(found[1], found[2]), _bytes(found[3], found[4])
        parts = {name: _bytes(size, unit) for name, size, unit in _PART.findall(message)}
        arguments = parts.get("arguments", 0.0)
        total = max(used, capacity + _bytes(found[5], found[6]))
        return HbmUsage(
            arguments=arguments, temporaries=total - arguments, used=total, capacity=capacity
        )
    found = _NEEDED.search(message)
    if found is not None:
        used, capacity = _bytes(found[1], found[2]), _bytes(found[3], found[4])
        return HbmUsage(temporaries=used, used=used, capacity=capacity)
    return None


def _bytes(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit]
