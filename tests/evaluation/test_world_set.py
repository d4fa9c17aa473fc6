"""Every evaluator runs on held-out films of the procedural world, where truth beats noise."""

import json

import pytest

from benchmarks.world.finding import SETTINGS, measure
from pyratok_jax.evaluate import main
from pyratok_jax.evaluation.synthetic import main as write
from pyratok_jax.evaluation.world_set import ACTIONS, label_of
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


def test_motions_are_labelled_as_an_annotator_would(world):
    found = json.loads((world / "localization" / "annotations.json").read_text())["database"]
    labels = {row["label"] for video in found.values() for row in video["annotations"]}
    known = {label_of(action) for action in ACTIONS}
    assert labels <= known and "moves to the left" in known and "left" not in known
    split = (world / "localization" / "splits" / "split_0.list").read_text().splitlines()
    assert set(split) < known


@pytest.mark.parametrize(
    ("task", "metric", "least"), [("segmentation", "j", 8.0), ("localization", "average_map", 15.0)]
)
def test_the_shipped_tokenizer_finds_things_and_motions(task, metric, least, tmp_path):
    write(["--output", str(tmp_path / "set"), "--world", "--count", "10", "--seed", "8"])
    settings = SETTINGS[task]
    if task == "segmentation":  # The field of 80 units takes minutes.
        settings = settings | {"crf_iterations": "0", "threshold": "0.6"}
    ours, noise = (
        measure(task, tokenizer, tmp_path / "set", tmp_path / tokenizer[:6], settings)[metric]
        for tokenizer in ("builtin:world", "random")
    )
    assert ours > noise + least, (ours, noise)
