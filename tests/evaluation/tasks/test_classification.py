"""Zero-shot classification and probes: labels, ranks, and oracle and random features."""

import json

import numpy as np
import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.evaluate import main
from pyratok_jax.evaluation.data.clips import even_indices, sample_frames
from pyratok_jax.evaluation.data.labelled import load_classes, load_labelled
from pyratok_jax.evaluation.models.features import (
    Features,
    LevelFeatures,
    level_means,
    parse_levels,
)
from pyratok_jax.evaluation.synthetic import write_video
from pyratok_jax.evaluation.task import parse_settings
from pyratok_jax.evaluation.tasks.classification import Classification, label_ranks
from pyratok_jax.evaluation.tasks.probes import Probes, linear_probe, nearest_neighbours


def run(task, data, output, checkpoint, *more):
    main(
        ["--task", task, "--checkpoint", checkpoint, "--data", str(data)]
        + ["--output", str(output), *more]
    )
    return json.loads((output / "results.json").read_text())


def test_ranks_by_hand_with_ties():
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [2.0, 2.0, 0.0]])
    assert label_ranks(scores, np.array([0, 2, 1, 0])).tolist() == [0, 2, np.inf, 0.5]
    tied = np.array([[2.0, 2.0, 2.0, 0.0], [3.0, 1.0, 1.0, 0.0]])
    assert label_ranks(tied, np.array([0, 1])).tolist() == [1, 1.5]


def test_scores_that_tell_nothing_are_never_right():
    nan = np.nan
    scores = np.array([[nan, nan], [nan, 1.0], [1.0, nan], [0.5, 0.5], [0.0, 1.0]])
    assert label_ranks(scores, np.array([0, 1, 0, 1, 1])).tolist() == [np.inf] * 4 + [0]
    assert label_ranks(np.ones((2, 12)), np.array([0, 11])).tolist() == [np.inf] * 2
    assert label_ranks(np.ones((1, 1)), np.array([0])).tolist() == [0]


def test_even_sampling():
    assert even_indices(10, 5) == [1, 3, 5, 7, 9]
    assert even_indices(2, 4) == [0, 0, 1, 1]


def test_sampled_frames_are_those_of_the_video(tmp_path):
    grey = np.arange(20, 220, 20, dtype=np.uint8)
    frames = np.repeat(grey, 32 * 32 * 3).reshape(10, 32, 32, 3)
    write_video(tmp_path / "v.mp4", frames)
    middle = sample_frames(str(tmp_path / "v.mp4"), 5, 0)[:, 16, 16, 0].astype(int)
    assert np.abs(middle - [40, 80, 120, 160, 200]).max() <= 4
    part = sample_frames(str(tmp_path / "v.mp4"), 2, 16, start=0.4, end=0.8)
    assert part.shape == (2, 16, 16, 3)
    assert np.abs(part[:, 8, 8, 0].astype(int) - [120, 160]).max() <= 4


def test_pooling_over_levels_and_parts():
    first = LevelFeatures(np.ones((2, 2, 2, 3), np.float32), np.arange(2), (8, 8))
    values = np.zeros((1, 2, 2, 3), np.float32)
    values[0, :, :, 0] = [[1, 2], [3, 4]]
    features = Features((first, LevelFeatures(values, np.zeros(2, int), (8, 8))))
    whole = level_means(features, None)
    np.testing.assert_allclose(whole[0], np.full(3, 3**-0.5), rtol=1e-6)
    np.testing.assert_allclose(whole[1], [1, 0, 0])
    parts = level_means(features, [1], grid=2)
    np.testing.assert_allclose(parts[0, ::3], np.array([1, 2, 3, 4]) / 30**0.5, rtol=1e-6)
    # A level of one cell gives the same width.
    coarse = Features((LevelFeatures(values[:, :1, :1], np.zeros(2, int), (16, 16)),))
    assert level_means(coarse, None, grid=2).shape == (1, 12)
    assert parse_levels("all") is None and parse_levels("1,4") == [0, 3]
    for text in ("0", "x", ""):
        with pytest.raises(UserError, match="levels"):
            parse_levels(text)
    with pytest.raises(UserError, match="no level 5"):
        level_means(features, [4])


def test_pooling_by_tokens_finds_a_class_that_fills_one_token():
    values = np.full((2, 4, 4, 3), (1.0, 0.0, 1.0), np.float32)
    values[1, 2, 2] = (0.0, 5.0, 0.0)
    wrong = LevelFeatures(np.ones((1, 1, 1, 3), np.float32), np.zeros(2, int), (16, 16))
    features = Features((wrong, LevelFeatures(values, np.arange(2), (4, 4))))
    best = {}
    for pooling in ("tokens", "mean"):
        task = Classification("", pooling=pooling, levels="2")
        task._queries = np.eye(3, dtype=np.float32)
        best[pooling] = task._scores(features).argmax()
    assert best["tokens"] == 1 and best["mean"] != 1
    with pytest.raises(UserError, match="pooling=best"):
        Classification("", pooling="best").check()


def test_published_lists(tmp_path):
    for name in ("Archery/v_1.avi", "Bowling/v_2.avi", "abc_000010_000020.mp4", "def.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ucf = tmp_path / "testlist01.txt"
    ucf.write_text("Archery/v_1.avi\nBowling/v_2.avi 2\n")
    assert [row.label for row in load_labelled(tmp_path, str(ucf))] == ["Archery", "Bowling"]
    kinetics = tmp_path / "k.csv"
    kinetics.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        "playing chess,abc,10,20,val\nair drumming,def,3.0,13.0,val\nx,gone,0,10,val\n"
    )
    rows = load_labelled(tmp_path, str(kinetics))
    assert [row.path.exists() for row in rows] == [True, True, False]
    assert (rows[0].start, rows[1].start, rows[1].end) == (None, 3.0, 13.0)
    classes = tmp_path / "classInd.txt"
    classes.write_text("1 Archery\n2 Bowling\n3 Diving\n")
    labelled = load_labelled(tmp_path, str(ucf))
    assert load_classes(str(classes), labelled) == ["Archery", "Bowling", "Diving"]
    classes.write_text("Archery\n")
    with pytest.raises(UserError, match="lacks 1 labels.*Bowling"):
        load_classes(str(classes), labelled)
    ucf.write_text("v_1.avi\n")
    with pytest.raises(UserError, match="line 1"):
        load_labelled(tmp_path, str(ucf))
    kinetics.write_text("name,id\nx,y\n")
    with pytest.raises(UserError, match="line 2"):
        load_labelled(tmp_path, str(kinetics))
    with pytest.raises(UserError, match="no folder"):
        load_labelled(tmp_path / "nowhere")


def test_oracle_is_always_right(constructed, tmp_path):
    test = constructed / "classification" / "test"
    best = run("classification", test, tmp_path / "o", "oracle")["metrics"]
    assert best["top1"] == best["top5"] == best["mean_class_top1"] == 100
    assert best["chance_top1"] == 25
    probes = run("probes", constructed / "classification", tmp_path / "p", "oracle")["metrics"]
    assert probes["linear_top1"] == probes["knn_top1"] == 100


def test_random_features_are_at_chance(rng, monkeypatch, tmp_path):
    """400 clips of 4 classes; the files are never opened."""
    from pyratok_jax.evaluation.tasks import classification

    for label in ("a", "b", "c", "d"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(100):
            (tmp_path / "data" / label / f"{number}.mp4").touch()

    def noise(row, frames, side):
        seed = np.frombuffer(row.name.encode().ljust(8), np.uint8)
        return np.random.default_rng(seed).integers(0, 255, (2, 8, 8, 3)).astype(np.uint8)

    monkeypatch.setattr(classification, "read_labelled", noise)
    monkeypatch.setattr(classification.Classification, "pictures", lambda *a: [])
    result = run("classification", tmp_path / "data", tmp_path / "out", "random")["metrics"]
    # Chance is 25; four standard errors are 8.7.
    assert abs(result["top1"] - 25) < 8.7 and result["top5"] == 100


def test_probes_separate_what_is_separable(rng):
    centres = rng.standard_normal((3, 10)) * 3
    labels = rng.integers(0, 3, 90)
    x = centres[labels] + rng.standard_normal((90, 10))
    train, test = x[:60], x[60:]
    linear = linear_probe(train, labels[:60], test, 3, 1e-3)
    near = nearest_neighbours(train, labels[:60], test, 3, 5)
    assert (linear.argmax(1) == labels[60:]).mean() > 0.9
    assert (near.argmax(1) == labels[60:]).mean() > 0.9
    shuffled = rng.permutation(labels[:60])
    assert (linear_probe(train, shuffled, test, 3, 1e-3).argmax(1) == labels[60:]).mean() < 0.7


def test_nearest_neighbours_by_hand():
    train = np.array([[1.0, 0], [0, 1.0], [0.1, 1.0]])
    scores = nearest_neighbours(train, np.array([0, 1, 1]), np.array([[2.0, 0.0]]), 2, 2)
    cosine = 0.1 / np.sqrt(1.01)
    np.testing.assert_allclose(scores[0], [1, np.exp((cosine - 1) / 0.07)], rtol=1e-6)


def test_a_test_label_without_training_is_refused(constructed, tmp_path):
    data = tmp_path / "data"
    for part, label in (("train", "a"), ("test", "b")):
        (data / part / label).mkdir(parents=True)
        (data / part / label / "v.mp4").touch()
    with pytest.raises(UserError, match="the label b is in test/"):
        run("probes", data, tmp_path / "out", "oracle")


@pytest.mark.parametrize(
    ("task", "setting"),
    [
        (Probes, "k=0"), (Probes, "grid=0"), (Probes, "frames=0"), (Probes, "side=-1"),
        (Probes, "decay=nan"), (Probes, "decay=-1"), (Classification, "frames=0"),
        (Classification, "side=-1"),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(constructed, task, setting):
    data = str(constructed / "classification" / ("test" if task is Classification else ""))
    with pytest.raises(UserError, match=f"--set {setting.partition('=')[0]}=.*: expected"):
        task(data, **parse_settings(task, [setting])).check()
    task(data).check()
