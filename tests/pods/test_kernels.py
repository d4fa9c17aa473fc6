"""Cycles of kernels from the compiler's listings."""

import pytest

from pyratok_jax.models.language.fused_attention import Blocks, KernelWork
from pyratok_jax.pods import kernels
from pyratok_jax.pods.hlo import HloProgram, kernel_operations
from pyratok_jax.pods.kernels import (
    Schedule,
    attention_cycles,
    kernel_cycles,
    take_schedules,
)
from pyratok_jax.pods.topology import CHIPS

# Shortened from what the compiler writes: a loop with a part of 0x20 bundles that begins a row, one
# of 0x800 that computes a block and one of 0x30 that ends a row.
LISTING = """
LB: loop body
     0   :  { %s1 = sld [smem:[#allocation0]] }
  0x10 LB: > { %s2 = sadd.s32 4294967295, %s3 }
  0x20   : > { %554 = sbr.rel (%p1) target = $region40  ;;  %s7 = sshll.u32 %s6, 8 }
  0x40 PF: > { %s8 = sld [smem:[#allocation44_spill]] }
  0x48   : > { %927 = sbr.rel (%p2) target = $region64 }
 0x848 PF: > { %s9 = sld [smem:[#allocation44_spill]] }
 0x850   : > { %974 = sbr.rel (%p3) target = $region68 }
 0x880 PF: > { %s10 = smov [#allocation16] }
 0x888   : > { %p4 = scmp.ge.s32.totalorder %s52, 82 /* loop exit test */ }
 0x890   : > { %51 = sbr.rel (!%p4) target = $region159 }
"""
WORK = KernelWork(2, 4, 128, Blocks(512, 1024, 10, 2, 15))


def test_parts_of_a_listing():
    schedule = Schedule.parse(LISTING)
    assert schedule == Schedule(trips=82, step=0x890 - 0x10 - 0x850, compute=0x800, edges=0x50)
    with pytest.raises(ValueError, match="no loop"):
        Schedule.parse(LISTING.replace("0x10 LB", "0x10   "))


def test_blocks_count_as_often_as_they_are_computed_and_no_less_than_their_products():
    schedule = Schedule.parse(LISTING)
    steps = 80 * 0x30
    # 8 clips and heads over two cores; two products of 512 x 1024 x 128 take a core 2,048 cycles.
    peak = 2 * 2 * 512 * 1024 * 128 / (459e12 / 1.75e9 / 2)
    assert peak == pytest.approx(2048, rel=0.01)
    found = attention_cycles(schedule, WORK, CHIPS["v5p"], "splash_mha_fwd.1")
    assert found == round(steps + 4 * (15 * max(0x800, peak) + 10 * 0x50))
    # Of keys and values four products are longer than the listing, and rows are of keys.
    found = attention_cycles(schedule, WORK, CHIPS["v5e"], "splash_mha_dkv.1")
    products = 4 * 2 * 512 * 1024 * 128 / (197e12 / 1.5e9)
    assert found == round(steps + 8 * (15 * products + 2 * 0x50))
    # One clip is on one of two cores in the backward pass.
    one = WORK._replace(clips=1)
    backward = [attention_cycles(schedule, w, CHIPS["v5p"], "splash_dq.1") for w in (one, WORK)]
    assert backward[0] == backward[1]
    with pytest.raises(ValueError, match="_dq"):
        attention_cycles(schedule, WORK, CHIPS["v5e"], "mine")


KERNEL = 'custom_call_target="tpu_custom_call"'
HLO = f"""HloModule jit_run

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  %splash_fwd.1 = f32[8]{{0}} custom-call(%x), {KERNEL}, frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q\\": 512}}"
}}}}, metadata={{op_name="jit(run)/prior_attention/{WORK.scope}/pallas_call"}}
  ROOT %other.1 = f32[8]{{0}} custom-call(%x), {KERNEL}, metadata={{op_name="jit(run)/mine"}}
}}
"""


def test_kernels_count_in_a_program_and_those_of_unknown_work_are_named():
    operations = kernel_operations(HLO)
    assert set(operations) == {"splash_fwd.1", "other.1"}
    cycles = kernel_cycles(operations, dict.fromkeys(operations, LISTING), CHIPS["v5p"])
    assert set(cycles) == {"splash_fwd.1"}
    program = HloProgram(HLO, cycles)
    assert program.cycles == cycles["splash_fwd.1"] > 0
    assert program.unknown == ["mine"]
    assert program.by_part(("prior_attention",))["prior_attention"] == program.cycles
    assert len(HloProgram(HLO).unknown) == 2
    assert kernel_cycles(operations, dict.fromkeys(operations, "other"), CHIPS["v5p"]) == {}


def test_schedules_are_read_once_and_removed(monkeypatch, tmp_path):
    folder = tmp_path / "schedules"
    monkeypatch.setattr(kernels, "schedules_folder", lambda: folder)
    assert take_schedules({"splash_fwd.1"}) == {}
    folder.mkdir()
    (folder / "17-splash_fwd.1-01-final_bundles.txt").write_text(LISTING)
    (folder / "17-splash_fwd.1-00-schedule-analysis_final_bundles.txt").write_text("other")
    (folder / "18-fusion.2-01-final_bundles.txt").write_text("other")
    assert take_schedules({"splash_fwd.1"}) == {"splash_fwd.1": LISTING}
    assert not folder.exists()
