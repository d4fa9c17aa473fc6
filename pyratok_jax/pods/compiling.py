"""Running the TPU compiler and taking its answers, the last of which it only writes to files.

The compiler is asked to dump what it makes. That gives the optimised program as it prints it itself
(reading it back through the runtime fails for some programs), and the assignment of memory, which
is ready long before the code is.
"""

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import jax

from pyratok_jax.pods.memory import Memory, parse_assignment, parse_exhausted

# The compiler's levels. On one stage of the VAE's encoder "medium" took a third of the time of
# "full" for a program of 1.3 times the cycles, "low" a seventh for twice the cycles. "memory" makes
# the program of "full" but does not wait for its code: there are no cycles then.
EFFORTS: dict[str, dict[str, str]] = {
    "full": {},
    "medium": {"xla_optimization_level": "EFFORT_O1"},
    "low": {"xla_optimization_level": "EFFORT_O0"},
    "memory": {},
}
_PROGRAM = "*.after_codegen.txt"
_EARLY_PROGRAM = "*.after_optimizations.txt"
_ASSIGNMENT = "*.after_optimizations-buffer-assignment.txt"


@dataclasses.dataclass
class Answer:
    """What the compiler says of a program.

    Attributes:
        memory: None when it refuses before memory is assigned, for another reason than memory.
        text: the optimised program; empty when there is none.
        costs: its own counts.
        error: a refusal for another reason than memory, else empty.
    """

    memory: Memory | None = None
    text: str = ""
    costs: dict[str, float] = dataclasses.field(default_factory=dict)
    error: str = ""


def compile_into(lowered: Any, effort: str, folder: Path) -> Answer:
    """Compile with dumps into an empty folder."""
    asked: dict[str, Any] = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
    options = EFFORTS[effort] | asked
    if effort == "memory":
        return _without_code(lowered, options, folder)
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        return _refusal(error, folder)
    found = memory_of_files(folder)
    code = compiled.memory_analysis().generated_code_size_in_bytes
    memory = dataclasses.replace(found, code=code, used=found.used + code)
    return Answer(memory, _newest(folder, _PROGRAM), compiled.cost_analysis() or {})


def _refusal(error: Exception, folder: Path) -> Answer:
    memory = parse_exhausted(str(error))
    if memory is not None:
        return Answer(memory)
    # Before it made code, it may have assigned more memory than there is: some versions then fail
    # on the size of a single array.
    assigned = memory_of_files(folder) if any(folder.glob(_ASSIGNMENT)) else None
    return Answer(assigned, error=" ".join(str(error).split())[:500])


def _without_code(lowered: Any, options: dict[str, Any], folder: Path) -> Answer:
    """The answer as soon as memory is assigned; the compiler is left running in its thread."""
    refusals: list[Exception] = []

    def run() -> None:
        try:
            lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            refusals.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    size = -1
    while thread.is_alive():
        time.sleep(1.0)
        files = list(folder.glob(_ASSIGNMENT))
        now = sum(file.stat().st_size for file in files)
        # Twice the same size: the file is whole.
        if files and now and now == size:
            return Answer(memory_of_files(folder), _newest(folder, _EARLY_PROGRAM))
        size = now
    if refusals:
        return _refusal(refusals[0], folder)
    # It was done before it was looked at: the answer is that of larger programs all the same.
    return Answer(memory_of_files(folder), _newest(folder, _EARLY_PROGRAM))


def memory_of_files(folder: Path) -> Memory:
    """Memory by kind of the program whose dumps lie in a folder."""
    return parse_assignment(_newest(folder, _ASSIGNMENT))


def _newest(folder: Path, pattern: str) -> str:
    files = sorted(folder.glob(pattern), key=lambda file: file.stat().st_size)
    # Small helper programs may be compiled beside it.
    return files[-1].read_text(errors="replace") if files else ""
