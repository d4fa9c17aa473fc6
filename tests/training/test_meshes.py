"""Ten steps give the same numbers on every mesh and number of processes; a kill changes none.

Every test run takes the method, small: every loss but LPIPS. Batches of 8 lie over all axes but
tensor clip by clip; batches of 2 have their frames split. `-m slow` takes the demo itself
(`configs/demo.py`: every loss, the shipped weights) on 8 clips of 5x32x32, half an hour on two
cores. Arrays are split from 16 values on, so that fsdp and tensor divide nearly all of them.
"""

import json

import numpy as np
import pytest

from tests.training.processes import arrays, execute, finish, launch, rows, same_bits
from tests.training.tiny import make_world
from tests.training.worker import SMALL_VAE

MESHES = {
    "data8": {"data": 8},
    "data2_fsdp4": {"data": 2, "fsdp": 4},
    "data2_spatial2_tensor2": {"data": 2, "spatial": 2, "tensor": 2},
}


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), SMALL_VAE)


def settings(world, folder, steps=10, batch=8, **changes):
    config = {"steps": steps, "batch_size": batch, "log_every": 1}
    output = str(folder.with_suffix(".npz"))
    return {"world": str(world), "workdir": str(folder), "output": output, "config": config,
            **changes}  # fmt: skip


@pytest.fixture(scope="module", params=["small", pytest.param("demo", marks=pytest.mark.slow)])
def training(request, small_world):
    """Makes the settings of a training of ten steps: folder, mesh -> settings."""

    def make(folder, mesh):
        made = settings(small_world, folder, mesh=mesh)
        return made | ({"task": "demo"} if request.param == "demo" else {})

    make.assert_same = assert_same_demo if request.param == "demo" else assert_same
    return make


@pytest.fixture(scope="module")
def one(training, tmp_path_factory):
    """On one device."""
    folder = tmp_path_factory.mktemp("one") / "run"
    execute([training(folder, {})])
    return folder


def losses_agree(folder, one):
    found, wanted = rows(folder), rows(one)
    assert [row["step"] for row in found] == list(range(1, 11))
    assert all(row.keys() == wanted[0].keys() for row in found)
    assert {"autoregressive", "entropy", "drift_dinov3", "retention"} <= wanted[0].keys()
    for a, b in zip(found, wanted, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    return found, wanted


def parameters(folder, one):
    """After the steps there and on one device, and on one device before them."""
    first, second = arrays(folder.with_suffix(".npz")), arrays(one.with_suffix(".npz"))
    assert first.keys() == second.keys()
    names = [name for name in second if not name.startswith(("opt/", "start/"))]
    return [(name, first[name], second[name], second[f"start/{name}"]) for name in names]


def assert_same(folder, one):
    for a, b in zip(*losses_agree(folder, one), strict=True):
        # Drift begins at exactly 0; the entropy term is a small difference of two entropies.
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    for name, found, wanted, _ in parameters(folder, one):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=name)


def assert_same_demo(folder, one):
    """A code within rounding of 0 may change sides, one of some 60,000: terms are not compared."""
    found, _ = losses_agree(folder, one)
    assert {"lpips", "ssim", "text_codebook"} <= found[0].keys()

    def norm(differences):
        return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in differences))

    compared = parameters(folder, one)
    wrong = norm(found - wanted for _, found, wanted, _ in compared)
    # Adam divides small gradients by their own size: their rounding shows where levels are drawn.
    assert wrong <= 1e-4 * norm(wanted for _, _, wanted, _ in compared)
    # Ten steps at the demo's learning rate are a short way.
    assert wrong <= 0.1 * norm(wanted - start for _, _, wanted, start in compared)


def test_eight_devices_in_three_meshes_give_the_numbers_of_one(training, one, tmp_path):
    execute([training(tmp_path / name, mesh) for name, mesh in MESHES.items()], devices=8)
    for name in MESHES:
        training.assert_same(tmp_path / name, one)


@pytest.mark.parametrize(("count", "mesh"), [(2, {"data": 2}), (4, {"data": 2, "tensor": 2})])
def test_processes_give_the_numbers_of_one(training, one, tmp_path, count, mesh):
    """Of four, two and two read the same clips and hold different parts of the weights."""
    execute([training(tmp_path / "run", mesh)], count=count)
    training.assert_same(tmp_path / "run", one)


def test_split_frames_give_the_numbers_of_whole_ones(small_world, tmp_path):
    """Two clips over 2 x 2 x 2 devices: each has the upper or the lower 16 rows of one clip."""
    changes = {"batch": 2, "buckets": ["3x32x32"]}
    execute([settings(small_world, tmp_path / "whole", **changes)])
    changes |= {"mesh": {"data": 2, "spatial": 2, "tensor": 2}}
    shards = tmp_path / "shards.json"
    execute([settings(small_world, tmp_path / "split", shards=str(shards), **changes)], devices=8)
    assert json.loads(shards.read_text()) == {"shapes": [[1, 3, 16, 32, 3]], "places": 4}
    assert_same(tmp_path / "split", tmp_path / "whole")


@pytest.mark.parametrize("count", [1, 2])
def test_killed_and_resumed_is_the_unbroken_run_bit_for_bit(small_world, tmp_path, count):
    """20 steps = 9 steps, SIGKILL, and the rest from the newest checkpoint."""

    def training(name, **changes):
        made = settings(small_world, tmp_path / name, steps=20, **changes)
        made["config"] |= {"log_every": 5, "checkpoint": {"every": 3, "keep": 2, "keep_every": 0}}
        return [made]

    execute(training("whole"), count=count)
    ended = finish(launch(training("run", accident=[-1, 10, "SIGKILL"]), count=count))
    assert [code for code, _ in ended] == [-9] * count, ended
    # A save that the kill cut short leaves no checkpoint and harms none.
    kept = [int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()]
    assert set(kept) <= {3, 6, 9} and kept
    execute(training("run"), count=count)
    assert same_bits(tmp_path / "run.npz", tmp_path / "whole.npz")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
