import threading
import time
from pathlib import Path

import jax
import pytest

from pyratok_jax.pods import aot
from pyratok_jax.pods.aot import HbmUsage, compile_into, parse_assignment, parse_exhausted
from pyratok_jax.pods.topology import GIBIBYTE

LONG = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error.
Ran out of memory in memory space hbm. Used 19.76G of 15.75G hbm. Exceeded hbm capacity by 4.02G.

Total hbm usage >= 20.01G:
    reserved        258.00M
    program          18.76G
    arguments         1.00G

Output size 0B; shares 0B with arguments.
"""
SHORT = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (800.00G) exceeds available HBM (95.73G). HLO module: jit_step."
)
ASSIGNMENT = """BufferAssignment:
allocation 0: size 1000, page 0, parameter 0, shape |f32[250]| at ShapeIndex {}, maybe-live-out:
 value: <15 param @0> (size=1000,offset=0): f32[250]
allocation 1: size 300, page 0, parameter 1, shape |f32[75]| at ShapeIndex {}:
allocation 2: size 40, page 0, output shape is |f32[10]|, maybe-live-out:
allocation 3: size 5000, page 0, preallocated-temp:
 value: <16 all-gather.1 @0> (size=4000,offset=0): f32[1000]
allocation 4: size 7000, color 1, page 0, preallocated-temp:
"""


def test_refusals_are_read():
    memory = parse_exhausted(LONG)
    assert memory.verdict == "does not fit by 4.0 GB"
    assert memory.arguments == GIBIBYTE
    assert memory.capacity == pytest.approx(15.75 * GIBIBYTE)
    memory = parse_exhausted(SHORT)
    assert memory.verdict == "does not fit by 704.3 GB"
    assert not memory.fits


def test_other_refusals_are_not_about_memory():
    assert parse_exhausted("INTERNAL: RET_CHECK failure") is None


class Refused:
    """A lowered program whose compilation ends with an error, with or without an assignment."""

    def __init__(self, assignment: str):
        self.assignment = assignment

    def compile(self, compiler_options):
        if self.assignment:
            folder = Path(compiler_options["xla_dump_to"])
            (folder / "a.after_optimizations-buffer-assignment.txt").write_text(self.assignment)
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")


@pytest.mark.parametrize("effort", ["full", "memory"])
def test_memory_assigned_before_another_refusal_is_told(tmp_path, effort):
    answer = compile_into(Refused(ASSIGNMENT), effort, tmp_path)
    assert (answer.memory.used, answer.error) == (6340, "INTERNAL: RET_CHECK failure")
    (tmp_path / "other").mkdir()
    answer = compile_into(Refused(""), effort, tmp_path / "other")
    assert (answer.memory, answer.error) == (None, "INTERNAL: RET_CHECK failure")


class Slow:
    """A lowered program that writes its program long after its assignment, and then compiles on."""

    def __init__(self):
        self.ended = threading.Event()

    def compile(self, compiler_options):
        folder = Path(compiler_options["xla_dump_to"])
        (folder / "a.after_optimizations-buffer-assignment.txt").write_text(ASSIGNMENT)
        time.sleep(0.1)
        (folder / "a.after_optimizations.txt").write_text("HloModule a")
        self.ended.wait(60)


def test_without_code_both_files_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(aot, "_LOOK_EVERY", 0.01)
    slow = Slow()
    answer = compile_into(slow, "memory", tmp_path)
    slow.ended.set()
    assert (answer.memory.used, answer.text) == (6340, "HloModule a")


def test_assigned_buffers_are_summed_by_kind():
    memory = parse_assignment(ASSIGNMENT)
    # The donated argument is also a result; the buffer in another memory does not count.
    assert (memory.arguments, memory.outputs, memory.aliased) == (1300, 1040, 1000)
    assert (memory.temporaries, memory.used) == (5000, 6340)


def test_what_fits_says_what_is_left():
    assert HbmUsage(used=GIBIBYTE, capacity=3 * GIBIBYTE).verdict == "fits (2.0 GB free)"
