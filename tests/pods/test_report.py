"""What is reported of a compiled program: figures by hand, and the tables that show them."""

import io

import pytest
from rich.console import Console

from pyratok_jax.pods.aot import HbmUsage
from pyratok_jax.pods.hlo import HloProgram
from pyratok_jax.pods.programs import StepProgram
from pyratok_jax.pods.report import (
    arrays,
    drawing_facts,
    fact_rows,
    memory_facts,
    program_facts,
    show,
)
from pyratok_jax.pods.topology import GIBIBYTE, parse_slice
from tests.pods.test_hlo import TEXT

WHERE = parse_slice("v5p:2x2x1")


def facts():
    program = HloProgram(TEXT)
    memory = memory_facts(HbmUsage(arguments=GIBIBYTE, used=2 * GIBIBYTE, capacity=3 * GIBIBYTE))
    return {
        "clips": 4,
        "effort": "full",
        "error": "",
        "memory": memory,
        "compiler_flops_loops_once": 5e12,
        "compiler_bytes_loops_once": 7e9,
        "seconds_to_trace": 1.0,
        "seconds_to_compile": 61.0,
        **program_facts(program, WHERE, chips=4, model_flops=1e9),
    }


def test_time_and_mfu_follow_from_cycles_clock_and_links():
    found, program = facts(), HloProgram(TEXT)
    seconds = program.cycles / 1.75e9
    assert program.cycles > 0 and found["step_seconds"] == pytest.approx(seconds)
    assert found["mfu"] == pytest.approx(1e9 / (4 * 459e12) / seconds)
    sent = sum(one.bytes for one in program.collectives().values())
    assert sent > 0
    slower = seconds + sent / 600e9
    assert found["step_seconds_without_overlap"] == pytest.approx(slower)
    assert found["mfu_without_overlap"] == pytest.approx(found["mfu"] * seconds / slower)
    assert sum(found["cycles_by_part"].values()) == program.cycles
    assert "step_seconds" not in program_facts(program, WHERE, 4, 1e9, timed=False)


def test_tables_show_the_figures():
    rows = dict(fact_rows(facts()))
    assert rows["memory per chip"] == "fits (1.0 GB free)"
    assert rows[""] == "2.00 of 3.00 GB: arguments 1.00"
    assert rows["compiler's count per chip, loops once"] == "5.00 TFLOP, 7.0 GB"
    assert rows["traced, compiled in"] == "1 s, 61 s (effort full)"
    text = io.StringIO()
    report = {
        "slices": 2, "topology": "v5p:2x2x1", "chips": 8, "bucket": "17x64x64", "remat": "auto",
        "mesh": {"fsdp": 4, "data": 1}, "accumulate": 3, "large_arrays_on_every_chip": [],
        "parameters": {"trainable": 2_000_000, "frozen": 127_000_000}, "steps": {"train": facts()},
    }  # fmt: skip
    show(report, Console(file=text, width=200))
    shown = text.getvalue()
    for part in ("2 x v5p:2x2x1 (8 chips; fsdp 4)", "127.0 M frozen", "train, 4 clips"):
        assert part in shown
    for name, one in facts()["collectives"].items():
        assert name in shown and f"{one['bytes'] / 1e9:.3f}" in shown


def test_rates_of_a_sampling_step_follow_from_its_time():
    program = StepProgram(run=len, arguments=(), donated=(), out_shardings=None, clips=3,
                          tokens=128, frames=4)  # fmt: skip
    drawn = drawing_facts(program, {"step_seconds": 0.5})
    assert drawn == {
        "tokens_per_second": 768, "frames_per_second": 24, "frames_per_second_of_a_clip": 8,
    }  # fmt: skip
    assert dict(fact_rows(facts() | drawn))["drawn"] == (
        "768 tokens/s, 24.00 frames/s, of one clip 8.00 frames/s"
    )
    assert drawing_facts(program._replace(tokens=0), {"step_seconds": 0.5}) == {}
    assert drawing_facts(program, {}) == {}


def test_a_failure_is_shown():
    failed = {"error": "INTERNAL: x", "memory": None, "effort": "low"}
    failed |= {"seconds_to_trace": 1.0, "seconds_to_compile": 2.0}
    assert fact_rows(failed)[0] == ("compiler's answer", "INTERNAL: x")


def test_equal_arrays_of_a_tuple_are_counted():
    three = "f32[3,16], f32[3,16], /*index=2*/f32[3,16], bf16[])"
    assert arrays(three) == "3 x f32[3,16], bf16[]"
    assert arrays("s32[4]{0:T(128)}") == "s32[4]"
    assert arrays("token") == "token"
