"""Every evaluator runs on held-out films of the procedural world, where truth beats noise."""

import json

import pytest

from pyratok_jax.evaluate import main
from pyratok_jax.evaluation.synthetic import main as write
from tests.evaluation.test_constructed_set import CASES, FIRST

FOLDERS = {
    "reconstruction": "videos",
    "compression": "videos",
    "codebook": "videos",
    "segmentation": "vis",
    "localization": "localization",
    "classification": "unseen/test",
    "probes": "motions",
    "vqa": "mvbench",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write(["--output", str(folder), "--world", "--count", "2", "--size", "48"])
    return folder


@pytest.mark.parametrize("task", FOLDERS)
def test_truth_beats_noise(task, world, tmp_path):
    settings = [s for s in CASES[task][1] if not s.startswith("raw")]
    found = {}
    for checkpoint in ("oracle", "random"):
        arguments = [
            "--task",
            task,
            "--checkpoint",
            checkpoint,
            "--data",
            str(world / FOLDERS[task]),
        ]
        arguments += ["--output", str(tmp_path / checkpoint), *(f"--set={s}" for s in settings)]
        main(arguments)
        found[checkpoint] = json.loads((tmp_path / checkpoint / "results.json").read_text())
    assert found["oracle"]["broken"] == []
    better, worse = (found[c]["metrics"][FIRST[task]] for c in ("oracle", "random"))
    # Noise uses all codes of a codebook equally often: there it is the best.
    assert better > worse if task != "codebook" else worse == 100
