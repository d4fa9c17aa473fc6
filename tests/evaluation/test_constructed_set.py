"""The constructed set, every task: the oracle at the top, noise at the bottom, damage survived."""

import json
import shutil

import numpy as np
import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.evaluate import main
from pyratok_jax.evaluation.data.mvbench import Question
from pyratok_jax.evaluation.models.answering import RandomAnswers
from pyratok_jax.evaluation.task import TASKS

REBUILT = ("side=32", "frames=5", "lpips=none")
CRF = ("crf_iterations=1", "place_weight=0")
# Task: folder, settings, metrics at their maximum, and what noise may reach of the first. With so
# few items noise can be far above chance; that it is at chance is tested with many items, without
# files, in the tests of each task.
CASES = {
    "reconstruction": ("videos", REBUILT, {"psnr": 100, "ssim": 1, "ssim_uniform": 1}, (4, 12)),
    "compression": (
        "videos",
        (*REBUILT, "codecs=x264", "crfs=20,45"),
        {"psnr": 100, "ssim": 1},
        (4, 12),
    ),
    # Noise uses every one of the 256 codes, and each equally often.
    "codebook": ("videos", ("sides=48", "frames=5"), {}, (99, 100)),
    "segmentation": ("vis", CRF, {"map": 100, "ap50": 100, "ar": 100, "j": 100}, (0, 10)),
    "localization": ("localization", (), {"average_map": 100}, (0, 60)),
    "classification": ("classification/test", (), {"top1": 100, "top5": 100}, (0, 75)),
    "probes": ("classification", (), {"linear_top1": 100, "knn_top1": 100}, (0, 90)),
    "vqa": ("mvbench", (), {"accuracy": 100, "without_an_option": 0}, (5, 60)),
    # Two numbers of 0 .. 1 are 1/3 apart on average. Nothing is nearer to the real clips than they.
    "generation": (
        "videos",
        ("side=32", "frames=5", "samples=3", "batch=1", "fvd=false", "condition=none"),
        {"flicker_difference": 0, "warping_error_difference": 0},
        (0.2, 0.34),
    ),
}
FIRST = {
    "reconstruction": "psnr",
    "compression": "psnr",
    "codebook": "utilisation",
    "segmentation": "map",
    "localization": "average_map",
    "classification": "top1",
    "probes": "linear_top1",
    "vqa": "accuracy",
    "generation": "flicker_difference",
}


def run(task, data, output, checkpoint, settings):
    arguments = ["--task", task, "--checkpoint", checkpoint, "--data", str(data)]
    arguments += ["--output", str(output), *(f"--set={setting}" for setting in settings)]
    main(arguments)
    return json.loads((output / "results.json").read_text())


def test_random_answers_do_not_depend_on_where_the_videos_lie():
    options = ("one", "two", "three", "four")
    answers = [
        [
            RandomAnswers().answer(
                np.zeros((1, 8, 8, 3), np.uint8),
                Question("moving_count", n, f"{folder}/{n}.mp4", "How many?", options, 0),
            )
            for n in range(40)
        ]
        for folder in ("/here", "/there")
    ]
    assert answers[0] == answers[1]
    assert {answer.option for answer in answers[0]} == {0, 1, 2, 3}


def test_every_task_is_here():
    assert CASES.keys() == TASKS.keys() == FIRST.keys()


@pytest.mark.parametrize("task", CASES)
def test_the_oracle_reaches_the_top_and_noise_does_not(task, constructed, tmp_path):
    folder, settings, best, (low, high) = CASES[task]
    found = run(task, constructed / folder, tmp_path / "o", "oracle", settings)
    assert found["broken"] == []
    for name, value in best.items():
        assert found["metrics"][name] == pytest.approx(value, abs=1e-5), name
    blind = run(task, constructed / folder, tmp_path / "r", "random", settings)
    assert low <= blind["metrics"][FIRST[task]] <= high


@pytest.mark.parametrize("task", [t for t in CASES if t != "segmentation"])
def test_a_damaged_video_costs_its_own_result_only(task, constructed, tmp_path):
    folder, settings, best, _ = CASES[task]
    data = tmp_path / "data"
    shutil.copytree(constructed / folder, data)
    videos = sorted(path for path in data.rglob("*.mp4"))
    # Of the probes' videos one to test on; nothing else is trained on less.
    victim = [v for v in videos if "test" in v.parts][0] if task == "probes" else videos[0]
    victim.write_bytes(victim.read_bytes()[:100])
    found = run(task, data, tmp_path / "out", "oracle", settings)
    assert found["items"]["evaluated"] < found["items"]["total"]
    assert all(victim.name in entry["reason"] for entry in found["broken"]) and found["broken"]
    for name, value in best.items():
        assert found["metrics"][name] == pytest.approx(value, abs=1e-5), name
    text = (tmp_path / "out" / "row.md").read_text()
    assert f"{found['items']['evaluated']} of {found['items']['total']} |" in text
    assert victim.name in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("task", ["vqa", "classification"])
def test_videos_missing_from_disk_are_named_and_left_out(task, constructed, tmp_path):
    folder, _, best, _ = CASES[task]
    data, settings = tmp_path / "data", []
    shutil.copytree(constructed / folder, data)
    victim = sorted(data.rglob("*.mp4"))[0]
    if task == "classification":
        names = [str(path.relative_to(data)) for path in sorted(data.rglob("*.mp4"))]
        (tmp_path / "list.txt").write_text("\n".join(names))
        settings = [f"table={tmp_path / 'list.txt'}"]
    victim.unlink()
    found = run(task, data, tmp_path / "out", "oracle", settings)
    assert found["broken"] and all(victim.name in entry["reason"] for entry in found["broken"])
    for name, value in best.items():
        assert found["metrics"][name] == pytest.approx(value), name


def test_no_proposal_at_all_scores_zero(constructed, tmp_path):
    settings = ("threshold=1.01",)
    found = run("localization", constructed / "localization", tmp_path, "oracle", settings)
    assert found["metrics"]["average_map"] == 0 and found["broken"] == []


def test_annotations_without_any_instance_are_refused_before_the_run(constructed, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(constructed / "localization", data)
    content = json.loads((data / "annotations.json").read_text())
    for video in content["database"].values():
        video["annotations"] = []
    (data / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotations.json"):
        run("localization", data, tmp_path / "out", "oracle", ())
    assert not (tmp_path / "out").exists()


def test_pictures_that_cannot_be_drawn_do_not_cost_the_results(
    constructed, tmp_path, monkeypatch, capsys
):
    from pyratok_jax.evaluation.tasks.reconstruction import Reconstruction

    def broken(self, partials, folder):
        raise OSError("no space left")

    monkeypatch.setattr(Reconstruction, "pictures", broken)
    found = run("reconstruction", constructed / "videos", tmp_path, "oracle", REBUILT)
    assert found["metrics"]["psnr"] == 100
    assert "PSNR" in (tmp_path / "report.html").read_text()
    assert "no pictures: no space left" in " ".join(capsys.readouterr().out.split())
