"""Ten steps give the same numbers on every mesh and number of processes; a kill changes none.

What is trained is the demo (`configs/demo.py`): its losses, masks, optimizer and all else. Every
test run takes it small, with two levels and narrow frozen networks; `-m slow` takes its own levels
and the networks that it ships, on 8 clips of 5x32x32, over 20 minutes on two cores. Batches of 8
are sharded by clip over all axes but tensor; batches of 2 have their heights sharded. Arrays are
sharded from 16 values on, so that fsdp and tensor shard nearly all of them. At the end all devices
reconstruct the held-out clip.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from pyratok_jax.errors import EXIT_HOST_LOST
from tests.training.processes import arrays, execute, finish, launch, rows, same_bits
from tests.training.tiny import make_world
from tests.training.worker import SMALL_VAE

Settings = dict[str, Any]
HELDOUT = {"name": "heldout", "every": 10, "buckets": ["3x16x16"]}
SAVED = {"every": 3, "keep": 2, "keep_every": 0}
TEN = {"steps": 10, "batch_size": 8, "log_every": 1, "evaluators": [HELDOUT], "checkpoint": SAVED}
TWO_CLIPS = {"config": TEN | {"batch_size": 2}, "buckets": ["3x32x32"]}
SPLIT = {"data": 2, "spatial": 2, "tensor": 2}


class Group(NamedTuple):
    """Processes that do some trainings one after the other: starting them takes the most time."""

    count: int
    devices: int
    ten_steps: dict[str, dict[str, int]]
    others: dict[str, Settings] = {}


PAIRS = {"data": 2, "tensor": 2}
KILLED = {"accident": [-1, 8, "SIGKILL"]}
GROUPS = {
    "one": Group(1, 1, {"plain": {}}, {"two_clips": TWO_CLIPS, "killed": KILLED}),
    "eight": Group(
        1,
        8,
        {"data8": {"data": 8}, "data2_fsdp4": {"data": 2, "fsdp": 4}, "split": SPLIT},
        {"split_frames": TWO_CLIPS | {"mesh": SPLIT}},
    ),
    # Weights are split inside a process and clips over both. Split over processes of one device,
    # independent collectives of one program may be started in another order in each: XLA's runtime
    # for CPUs does not order them, and Gloo then mixes them up or waits for ever.
    "pairs": Group(2, 2, {"data2_tensor2": PAIRS}, {"killed": KILLED | {"mesh": PAIRS}}),
}
# Name of a group -> folder in which its trainings have their folders.
Ran = Callable[[str], Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), SMALL_VAE)


def settings(world: Path, folder: Path, changes: Settings) -> Settings:
    outputs = {"output": str(folder.with_suffix(".npz")), "shards": str(folder) + ".json"}
    return {"world": str(world), "workdir": str(folder), "config": TEN, **outputs, **changes}


def runner(
    world: Path, root: Path, choose: Callable[[Group], dict[str, Settings]], timeout: float = 900
) -> Ran:
    """Runs the trainings that `choose` picks of a group, once."""

    @functools.cache
    def ran(name: str) -> Path:
        group = GROUPS[name]
        trainings = choose(group)
        made = [settings(world, root / name / run, x) for run, x in trainings.items()]
        ended = finish(launch(made, group.count, group.devices), timeout)
        codes = [found for found, _ in ended]
        if "killed" in trainings:
            # One that sees its peer dead before its own kill says so: exit code 3.
            assert -9 in codes and {*codes} <= {-9, EXIT_HOST_LOST}, ended[0][1][-4000:]
        else:
            assert codes == [0] * group.count, ended[0][1][-4000:]
        return root / name

    return ran


@pytest.fixture(scope="module")
def small(world, tmp_path_factory) -> Ran:
    def choose(group: Group) -> dict[str, Settings]:
        return {run: {"mesh": mesh} for run, mesh in group.ten_steps.items()} | group.others

    return runner(world, tmp_path_factory.mktemp("small"), choose)


@pytest.fixture(scope="module")
def demo(world, tmp_path_factory) -> Ran:
    def choose(group: Group) -> dict[str, Settings]:
        return {run: {"mesh": mesh, "task": "demo"} for run, mesh in group.ten_steps.items()}

    return runner(world, tmp_path_factory.mktemp("demo"), choose, timeout=3600)


def losses_agree(folder: Path, one: Path) -> tuple[list[dict], list[dict]]:
    found, wanted = rows(folder), rows(one)
    # The last row is that of the held-out clip, one of eight rows that are shared out.
    for name, value in wanted.pop().items():
        assert found[-1][name] == pytest.approx(value, rel=1e-3), name
    found.pop()
    assert [row["step"] for row in found] == list(range(1, 11))
    assert all(row.keys() == wanted[0].keys() for row in found)
    terms = "l1 ssim lpips commitment entropy hierarchy text text_codebook autoregressive"
    assert {*terms.split(), "drift_vae", "drift_dinov3", "retention"} <= wanted[0].keys()
    for a, b in zip(found, wanted, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    return found, wanted


def parameters(folder: Path, one: Path) -> list[tuple]:
    """After the steps there and on one device, and on one device before them."""
    first, second = arrays(folder.with_suffix(".npz")), arrays(one.with_suffix(".npz"))
    assert first.keys() == second.keys()
    names = [name for name in second if not name.startswith(("opt/", "start/"))]
    return [(name, first[name], second[name], second[f"start/{name}"]) for name in names]


def assert_same(folder: Path, one: Path) -> None:
    for a, b in zip(*losses_agree(folder, one), strict=True):
        # Drift begins at exactly 0; the entropy term is a small difference of two entropies.
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    for name, found, wanted, _ in parameters(folder, one):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=name)


def assert_same_demo(folder: Path, one: Path) -> None:
    """A code within rounding of 0 may change sides, one of some 60,000 in ten steps.

    The loss then differs by a millionth or more in that step, and what follows is another training:
    Adam divides the smallest gradients, which that code changes most, by their own size.
    """
    losses = [(a["loss"], b["loss"]) for a, b in zip(*losses_agree(folder, one), strict=True)]
    flipped = sum(abs(a - b) > 1e-6 * b for a, b in losses)
    assert flipped <= 1

    def norm(differences):
        return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in differences))

    compared = parameters(folder, one)
    wrong = norm(found - wanted for _, found, wanted, _ in compared)
    assert wrong <= 1e-4 * norm(wanted for _, _, wanted, _ in compared)
    # Ten steps at the demo's learning rate are a short way.
    way = norm(wanted - start for _, _, wanted, start in compared)
    assert wrong <= (0.2 if flipped else 1e-3) * way


LAYOUTS = [(name, run) for name in ("eight", "pairs") for run in GROUPS[name].ten_steps]


@pytest.mark.parametrize(("group", "run"), LAYOUTS)
def test_ten_steps_give_the_numbers_of_one_device(small, group, run):
    assert_same(small(group) / run, small("one") / "plain")


@pytest.mark.slow
@pytest.mark.parametrize(("group", "run"), LAYOUTS)
def test_ten_steps_of_the_demo_give_the_numbers_of_one_device(demo, group, run):
    assert_same_demo(demo(group) / run, demo("one") / "plain")


def test_split_frames_give_the_numbers_of_whole_ones(small):
    """Two clips over 2 x 2 x 2 devices: each has the upper or the lower 16 rows of one clip."""
    shards = json.loads((small("eight") / "split_frames.json").read_text())
    assert shards == {"shapes": [[1, 3, 16, 32, 3]], "places": 4}
    assert_same(small("eight") / "split_frames", small("one") / "two_clips")


@pytest.mark.parametrize("group", ["one", "pairs"])
def test_killed_and_resumed_is_the_unbroken_run_bit_for_bit(world, small, group):
    """10 steps = 7 steps, SIGKILL, and the rest from the newest checkpoint."""
    (run, mesh), *_ = GROUPS[group].ten_steps.items()
    whole, killed = small(group) / run, small(group) / "killed"
    # A save that the kill cut short leaves no checkpoint and harms none.
    kept = [int(p.name) for p in (killed / "checkpoints").iterdir() if p.name.isdigit()]
    assert set(kept) <= {3, 6} and kept
    execute([settings(world, killed, {"mesh": mesh})], GROUPS[group].count, GROUPS[group].devices)
    assert same_bits(killed.with_suffix(".npz"), whole.with_suffix(".npz"))
    assert rows(killed) == rows(whole)
