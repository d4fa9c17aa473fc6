from pathlib import Path

import pytest

from pyratok_jax.pods.hlo import Program, device_groups, sent_bytes

# Shortened from what the compiler writes: a loop of 5 turns with a fusion and a gather inside, a
# fusion and a reduction over pairs of chips outside.
TEXT = (Path(__file__).parent / "program.hlo.txt").read_text()


@pytest.fixture(scope="module")
def program():
    return Program(TEXT)


def test_a_loop_counts_as_often_as_it_runs(program):
    assert program.cycles == 5 * 1000 + 700
    assert program.open_loops == 0
    untold = TEXT.replace('"known_trip_count":{"n":"5"},', "")
    assert (Program(untold).cycles, Program(untold).open_loops) == (1700, 1)
    scanned = untold.replace(
        "ROOT %less = pred[]{:T(512)} constant(true)",
        "%i = s32[]{:T(128)} get-tuple-element(%state.2), index=0\n"
        "  %limit.1 = s32[]{:T(128)} constant(36)\n"
        "  ROOT %less = pred[]{:T(512)} compare(%i, %limit.1), direction=LT",
    )
    assert (Program(scanned).cycles, Program(scanned).open_loops) == (36_700, 0)


def test_what_the_compiler_cannot_estimate_is_named():
    unknown = Program(TEXT.replace('"estimated_cycles":"700"', f'"estimated_cycles":"{2**64 - 1}"'))
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
