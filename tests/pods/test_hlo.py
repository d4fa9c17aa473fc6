from pathlib import Path

import pytest

from pyratok_jax.pods.hlo import HloProgram, device_groups, sent_bytes

# Shortened from what the compiler writes: a loop of 5 turns with a fusion and a gather inside, a
# fusion and a reduction over pairs of chips outside.
TEXT = (Path(__file__).parent / "program.hlo.txt").read_text()


@pytest.fixture(scope="module")
def program():
    return HloProgram(TEXT)


def test_a_loop_counts_as_often_as_it_runs(program):
    assert program.cycles == 5 * 1000 + 700
    assert program.open_loops == 0
    untold = TEXT.replace('"known_trip_count":{"n":"5"},', "")
    assert (HloProgram(untold).cycles, HloProgram(untold).open_loops) == (1700, 1)
    scanned = untold.replace(
        "ROOT %less = pred[]{:T(512)} constant(true)",
        "%i = s32[]{:T(128)} get-tuple-element(%state.2), index=0\n"
        "  %limit.1 = s32[]{:T(128)} constant(36)\n"
        "  ROOT %less = pred[]{:T(512)} compare(%i, %limit.1), direction=LT",
    )
    assert (HloProgram(scanned).cycles, HloProgram(scanned).open_loops) == (36_700, 0)


def test_what_the_compiler_cannot_estimate_is_named():
    unknown = HloProgram(
        TEXT.replace('"estimated_cycles":"700"', f'"estimated_cycles":"{2**64 - 1}"')
    )
    assert unknown.cycles == 5000
    assert unknown.unknown == ["head/dot"]


def test_costliest_operations_name_shape_and_place(program):
    first, second = program.costliest(2)
    assert (first.cycles, first.count, first.shape) == (5000, 5, "bf16[8,128]")
    assert first.where == "while/body/layer/sin"
    assert (second.cycles, second.where) == (700, "head/dot")
    assert program.by_part(("layer", "head")) == {"layer": 5000, "head": 700, "other": 0}


def test_collectives_count_what_a_chip_sends(program):
    found = program.collectives(chips_per_slice=4)
    gather, reduce = found["all-gather"], found["all-reduce"]
    # Eight parts, of which a chip passes seven on; five times.
    assert (gather.count, gather.bytes) == (5, 5 * 64 * 128 * 2 * 7 / 8)
    assert gather.across_slices == gather.bytes
    assert (reduce.count, reduce.bytes, reduce.across_slices) == (1, 2 * 32 / 2, 0)
    assert program.gathers() == [("jit(step)/while/body/layer/gather", "bf16[64,128]", 16384)]


def across(kind, shape, target):
    """A transfer between slices as the compiler writes it: sent, and the result received."""
    attributes = (
        "channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="
        f'"xla_megascale_runtime",_xla_host_transfer_rendezvous="x_0",_xla_megascale_target={target}'
        f',_xla_megascale_transfer_type="{kind}",is_spmd_generated="true"}}'
    )
    return (
        "ENTRY %main (p: f32[64,512]) -> f32[] {\n"
        "  %send = (f32[64,512]{1,0:T(8,128)}, u32[]{:S(2)}, token[]) send(%p, %after-all), "
        f"{attributes}\n"
        f"  %recv = ({shape}{{1,0:T(8,128)}}, u32[]{{:S(2)}}, token[]) recv(%after-all), "
        f'{attributes}, backend_config={{"flag_configs":[]}}\n'
        "  %recv-done = (f32[64,512], token[]) recv-done(%recv), channel_id=2, "
        "is_host_transfer=true\n}\n"
    )


@pytest.mark.parametrize(
    ("kind", "shape", "target", "name", "sent"),
    [
        # Two slices each send half of the sum and half of the parts; four, three quarters of both.
        ("ALL_REDUCE", "f32[64,512]", '"{1,2}x{0:3}"', "all-reduce", 64 * 512 * 4),
        ("ALL_REDUCE", "f32[64,512]", '"{1:4}x{0:3}"', "all-reduce", 64 * 512 * 4 * 1.5),
        ("ALL_GATHER", "f32[256,512]", '"{1,2,3,4}x{0:3}"', "all-gather", 3 * 64 * 512 * 4),
        ("REDUCE_SCATTER", "f32[16,512]", '"{1,2,3,4}x{0:3}"', "reduce-scatter", 3 * 16 * 512 * 4),
        (
            "ALL_TO_ALL", "f32[64,512]", "{{100000,200000},{100001,200001}}", "all-to-all",
            64 * 512 * 2,
        ),
        (
            "ONE_TO_ONE", "f32[64,512]", "{{100000->200000},{200000->100000}}",
            "collective-permute", 64 * 512 * 4,
        ),
    ],
)  # fmt: skip
def test_what_is_sent_to_other_slices_is_counted_once(kind, shape, target, name, sent):
    (found,) = HloProgram(across(kind, shape, target)).collectives(chips_per_slice=4).items()
    assert found[0] == name
    assert (found[1].count, found[1].bytes, found[1].across_slices) == (1, sent, sent)


def test_a_transfer_to_the_host_for_another_reason_is_no_collective():
    text = across("ALL_REDUCE", "f32[64,512]", '"{1,2}x{0:3}"')
    text = text.replace('_xla_megascale_transfer_type="ALL_REDUCE",', "")
    assert HloProgram(text).collectives(chips_per_slice=4) == {}


def test_a_fused_reduction_that_keeps_a_part_is_a_reduce_scatter():
    text = """
%all-reduce-scatter.2 (input: f32[512,1024]) -> f32[128,1024] {
  %all-reduce.3 = f32[512,1024]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice.5 = f32[128,1024]{1,0:T(8,128)} dynamic-slice(%all-reduce.3, %i, %j), dynamic_slice_sizes={128,1024}
}

ENTRY %main (p: f32[512,1024]) -> f32[128,1024] {
  ROOT %fusion = f32[128,1024]{1,0:T(8,128)} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.2
}
"""  # noqa: E501
    (found,) = HloProgram(text).collectives().items()
    assert (found[0], found[1].bytes) == ("reduce-scatter", 3 * 128 * 1024 * 4)


def test_device_groups_of_all_forms():
    assert device_groups("replica_groups=[2,4]<=[8]") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert device_groups("replica_groups=[4,2]<=[2,4]T(1,0)") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert device_groups("replica_groups={{0,2},{1,3}}, dimensions={0}") == [[0, 2], [1, 3]]
    assert device_groups("source_target_pairs={{0,1},{1,0}}") == [[0, 1], [1, 0]]
    assert device_groups("replica_groups=mesh['a'=2,'b'=2] {'a'}, x={0}") == [[0, 2], [1, 3]]
    assert device_groups("replica_groups=mesh['a'=2,'b'=2] {'b'}") == [[0, 1], [2, 3]]
    assert device_groups("replica_groups=mesh['a'=2,'b'=2] {'a','b'}") == [[0, 1, 2, 3]]
    assert device_groups("replica_groups=mesh['a'=8] {'a':(2)2}") == [
        [0, 2], [1, 3], [4, 6], [5, 7],
    ]  # fmt: skip
    assert device_groups("add(%a, %b)") == []


def test_what_is_sent_follows_the_ring():
    assert sent_bytes("all-gather", 80, 4) == 60
    assert sent_bytes("all-reduce", 80, 4) == 120
    assert sent_bytes("reduce-scatter", 20, 4) == 60
    assert sent_bytes("collective-permute", 80, 2) == 80
    assert sent_bytes("all-reduce", 80, 1) == 0


def test_a_gather_hidden_behind_other_work_counts_once():
    gather = (
        "bf16[64,128] all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, "
        'backend_config={"async_collective_fusion_config":{"flag_end":"8"}}'
    )
    plain = gather.replace("channel_id=7", "channel_id=8").split(", backend_config")[0]
    parts = ("start", "between", "end")
    bodies = "".join(
        f"%{name} (p: bf16[16,128]) -> bf16[64,128] {{\n  ROOT %{name}.1 = {gather}\n}}\n"
        for name in parts
    )
    calls = "".join(
        f"  %{name} = bf16[64,128] fusion(%x), kind=kCustom, calls=%{called}\n"
        for name, called in [
            ("async-collective-start.3", "start"), ("fusion.1", "between"), ("fusion.2", "between"),
            ("async-collective-done.3", "end"),
        ]
    )  # fmt: skip
    text = f"{bodies}ENTRY %main (x: bf16[16,128]) -> bf16[64,128] {{\n{calls}  %g = {plain}\n}}\n"
    program = HloProgram(text)
    assert program.collectives()["all-gather"].count == 2
    assert program.collectives()["all-gather"].bytes == 2 * 64 * 128 * 2 * 3 / 4
    assert len(program.gathers()) == 2
