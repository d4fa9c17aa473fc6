"""Localization: annotations, proposals, and the task with oracle and random features."""

import json

import numpy as np
import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.evaluate import main
from pyratok_jax.evaluation.data.labelled import spoken
from pyratok_jax.evaluation.data.localization import load_annotations, load_splits
from pyratok_jax.evaluation.models.features import (
    Features,
    LevelFeatures,
    frame_similarities,
    normalized,
    pooled_similarity,
)
from pyratok_jax.evaluation.task import parse_settings
from pyratok_jax.evaluation.tasks.localization import Localization
from pyratok_jax.evaluation.vision.temporal_detection import (
    ProposalSettings,
    connected_runs,
    propose,
    window_means,
)

ENTRY = '{"database": {"a": {"subset": "test", "annotations": [%s]}}}'


def run(data, output, checkpoint, *more):
    main(
        ["--task", "localization", "--checkpoint", checkpoint, "--data", str(data)]
        + ["--output", str(output), *more]
    )
    return json.loads((output / "results.json").read_text())


def test_window_means_by_hand():
    scores = np.array([0.0, 0.0, 3.0, 0.0, 0.0])
    np.testing.assert_allclose(window_means(scores, 3), [0, 1, 1, 1, 0])
    np.testing.assert_allclose(window_means(np.array([2.0, 4.0]), 25), [3, 3])


def test_connected_runs_merge_over_gaps():
    above = np.array([1, 1, 0, 1, 0, 0, 0, 1], bool)
    assert connected_runs(above, 0) == [(0, 2), (3, 4), (7, 8)]
    assert connected_runs(above, 1) == [(0, 4), (7, 8)]
    assert connected_runs(np.zeros(4, bool), 1) == []


def test_proposals_come_best_first_and_recover_a_step_exactly():
    scores = np.zeros(200)
    scores[40:80] = scores[120:170] = 1.0
    runs = propose(scores, ProposalSettings(window_frames=25, threshold=0.5, gap=5))
    # The longer one loses less at its ends to the windows.
    assert [(r.first, r.end) for r in runs] == [(120, 170), (40, 80)]
    assert runs[0].score > runs[1].score > 0.7
    assert propose(np.ones(50), ProposalSettings()) == []
    assert propose(np.zeros(0), ProposalSettings()) == []


def test_spoken_names():
    assert spoken("BaseballPitch") == "baseball pitch"
    assert spoken("Applying sunscreen") == "Applying sunscreen"
    assert spoken("giant_panda") == "giant panda"


def test_annotations_of_published_form(tmp_path):
    path = tmp_path / "gt.json"
    content = {
        "database": {
            "a": {"subset": "test", "annotations": [{"segment": ["1.0", "2.5"], "label": "X"}]},
            "b": {"subset": "train", "annotations": []},
            "c": {"subset": "test", "annotations": [{"segment": [3, 3], "label": "Y"}]},
        }
    }
    path.write_text(json.dumps(content))
    found = load_annotations(path, "test")
    assert list(found.videos) == ["a", "c"]
    assert found.videos["a"][0][2:] == (1.0, 2.5)
    assert found.dropped == 1 and found.labels == ("X",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "database"),
        ('{"database": {"a": 3}}', "video a"),
        (ENTRY % '{"label": "X"}', "video a"),
        (ENTRY % '{"segment": [1], "label": "X"}', "video a"),
        (ENTRY % '{"segment": [1, NaN], "label": 2}', "video a"),
        ('{"database": {"a": {"subset": "train"}}}', "subset test"),
    ],
)
def test_broken_annotations_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "gt.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_annotations(path, "test")


def test_splits_are_read_in_natural_order(tmp_path):
    for number in (10, 2, 0):
        (tmp_path / f"split_{number}.list").write_text("A\n\nB c\n")
    assert list(load_splits(str(tmp_path))) == ["split_0", "split_2", "split_10"]
    assert load_splits(str(tmp_path))["split_2"] == ("A", "B c")


def test_oracle_reaches_100_and_random_does_not(constructed, tmp_path):
    data = constructed / "localization"
    best = run(data, tmp_path / "oracle", "oracle")
    assert best["metrics"]["average_map"] == pytest.approx(100)
    assert best["metrics"]["average_map_std"] == pytest.approx(0)
    assert best["metrics"]["splits"] == 3
    assert set(best["metrics"]["map_by_iou"]) == {"0.3", "0.4", "0.5", "0.6", "0.7"}
    blind = run(data, tmp_path / "random", "random")
    assert blind["metrics"]["average_map"] < 60
    assert (tmp_path / "oracle" / "report.html").read_text().count("<img") == 3


def test_random_features_are_at_the_chance_of_random_scores(constructed, rng):
    task = Localization(str(constructed / "localization"))
    model = task.baseline("random")
    task.prepare(model)
    partials = {item.id: task.evaluate_item(model, item) for item in task.items()}
    found = task.aggregate(partials)["average_map"]
    spread = np.std([part["scores"] for part in partials.values()][0])
    chance = []
    for _ in range(400):
        noise = {
            name: part | {"scores": rng.normal(0, spread, part["scores"].shape)}
            for name, part in partials.items()
        }
        chance.append(task.aggregate(noise)["average_map"])
    assert min(chance) <= found <= max(chance) and np.mean(chance) < 60


@pytest.mark.parametrize(("count", "stride"), [(20, 3), (21, 3), (4, 3), (9, 9), (20, 0), (20, 1)])
def test_pieces_show_every_frame_and_start_a_stride_apart(count, stride):
    task = Localization("x", side=4, clip_frames=9, stride=stride)
    frames = [np.full((4, 4, 3), number, np.uint8) for number in range(count)]
    pieces = [(first, clip[:, 0, 0, 0].tolist()) for first, clip in task._pieces(frames)]
    starts = [first for first, _ in pieces]
    # Pieces share a frame at least: its score is not that of the second one's frame 0.
    assert starts == list(range(0, starts[-1] + 1, min(stride or 9, 8)))
    for first, numbers in pieces:
        assert numbers == list(range(first, first + len(numbers))) and len(numbers) <= 9
    assert {n for _, numbers in pieces for n in numbers} == set(range(count))
    # The last piece is there for frames that no other one shows.
    seen = {n for _, numbers in pieces[:-1] for n in numbers}
    assert not set(pieces[-1][1]) <= seen


def test_the_oracle_stays_the_best_with_other_settings(constructed, tmp_path):
    settings = ("stride=5", "clip_frames=9", "levels=all", "pooling=peaks")
    more = [word for setting in settings for word in ("--set", setting)]
    best = run(constructed / "localization", tmp_path / "plain", "oracle", *more)
    assert best["metrics"]["average_map"] == pytest.approx(100)
    more += ["--set", "contrast=true"]
    # Another class in sight lowers a score below that of a frame that shows nothing.
    less = run(constructed / "localization", tmp_path / "contrast", "oracle", *more)
    assert 90 < less["metrics"]["average_map"] < 100
    with pytest.raises(UserError, match="stride=10"):
        run(constructed / "localization", tmp_path / "n", "oracle", *more, "--set", "stride=10")
    with pytest.raises(UserError, match="no level 5, only 4"):
        run(constructed / "localization", tmp_path / "n", "oracle", "--set", "levels=1,5")
    assert not list((tmp_path / "n").rglob("*.npz"))
    with pytest.raises(UserError, match="pooling=most"):
        run(constructed / "localization", tmp_path / "n", "oracle", "--set", "pooling=most")


class Known:
    """Features that say in each level what is asked of them, and how many bits they took."""

    checkpoint_hash = "known"

    def video(self, clip, truth=None, caption=None):
        # Level 1 is like the first class where frames are bright; level 2 like the second one, and
        # that only in one of four tokens; both are a little like everything.
        bright = clip.mean(axis=(1, 2, 3)) / 255
        levels = []
        for level in range(2):
            values = np.full((len(clip), 2, 2, 3), 0.1, np.float32)
            part = values[:, :1, :1] if level else values
            part[..., level] += bright[:, None, None]
            levels.append(LevelFeatures(values, np.arange(len(clip)), (8, 8)))
        return Features(tuple(levels), bits=10.0 * len(clip))

    def texts(self, captions):
        return np.eye(3, dtype=np.float32)[[len(text) % 2 for text in captions]]


@pytest.fixture
def scores(constructed):
    """Scores and facts of one video under settings, by features that are known."""

    def call(**settings):
        task = Localization(
            str(constructed / "localization"), side=16, **({"clip_frames": 9} | settings)
        )
        task._queries = np.eye(3, dtype=np.float32)[:2]
        return task.evaluate_item(Known(), task.items()[0])

    return call


def test_settings_choose_what_frames_are_compared_by(scores):
    plain = scores()["scores"]
    assert plain.shape[1] == 2 and (plain[:, 0] > plain[:, 1]).all()
    second = scores(levels="2")["scores"]
    assert (second[:, 1] > second[:, 0]).all()
    both = scores(levels="all")["scores"]
    np.testing.assert_allclose(both, (plain + second) / 2, atol=1e-6)
    # What one token of four shows is more of the peak than of the mean.
    assert (scores(levels="2", pooling="peaks")["scores"][:, 1] > second[:, 1]).all()
    np.testing.assert_allclose(
        scores(contrast=True)["scores"], plain - plain.mean(axis=1, keepdims=True), atol=1e-6
    )


def test_overlapping_pieces_are_averaged_and_their_bits_counted_once(scores):
    plain, overlapping = scores(), scores(stride=4)
    np.testing.assert_allclose(overlapping["scores"], plain["scores"], atol=1e-6)
    frames = len(plain["scores"])
    assert plain["clip"]["bits"] == pytest.approx(10 * frames)
    assert overlapping["clip"]["bits"] == pytest.approx(10 * frames)


@pytest.mark.parametrize("settings", [{}, {"stride": 4}, {"clip_frames": 2}])
def test_no_frame_inside_a_film_is_read_from_codes_of_a_frame_0(scores, monkeypatch, settings):
    """Those show a picture without motion; here they are like nothing, and all others like 1."""
    plain = Known.video

    def video(self, clip, truth=None, caption=None):
        found = plain(self, np.full_like(clip, 255))
        for level in found.levels:
            level.values[0] = 0.0
        return found

    monkeypatch.setattr(Known, "video", video)
    rows = scores(**settings)["scores"]
    assert rows[0, 0] == 0.0 and (rows[1:, 0] > 0.9).all() and np.ptp(rows[1:, 0]) < 1e-6


def test_contrast_needs_two_classes(constructed, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "annotations.json").write_text(ENTRY % '{"segment": [0, 1], "label": "X"}')
    with pytest.raises(UserError, match="only one"):
        run(data, tmp_path / "out", "random", "--set", "contrast=true")


@pytest.mark.parametrize("pooling", ["mean", "tokens", "peaks"])
def test_a_frame_is_as_similar_as_a_clip_of_its_tokens_alone(pooling, rng):
    rows = np.array([0, 1, 1, 2])
    levels = tuple(
        LevelFeatures(rng.standard_normal((3, h, 2, 5)).astype(np.float32), rows, (8, 8))
        for h in (2, 4)
    )
    queries = normalized(rng.standard_normal((3, 5)).astype(np.float32))
    found = frame_similarities(Features(levels), queries, pooling, None)
    for frame, row in enumerate(rows):
        alone = [LevelFeatures(x.values[row : row + 1], rows[:1], x.cell) for x in levels]
        expected = [pooled_similarity(Features((x,)), queries, pooling) for x in alone]
        np.testing.assert_allclose(found[frame], np.mean(expected, axis=0), atol=1e-6)


def test_thresholds_change_without_a_new_evaluation(constructed, tmp_path, capsys):
    data = constructed / "localization"
    run(data, tmp_path, "random")
    capsys.readouterr()
    again = run(data, tmp_path, "random", "--set", "ious=0.5:0.05:0.95")
    assert "3 of 3 items are done already" in capsys.readouterr().out
    assert len(again["metrics"]["map_by_iou"]) == 10


def test_missing_videos_are_recorded_and_left_out(constructed, tmp_path):
    data = tmp_path / "data"
    (data / "videos").mkdir(parents=True)
    source = constructed / "localization"
    content = json.loads((source / "annotations.json").read_text())
    content["database"]["gone"] = {"annotations": [{"segment": [0, 1], "label": "blinking"}]}
    (data / "annotations.json").write_text(json.dumps(content))
    for file in (source / "videos").iterdir():
        (data / "videos" / file.name).symlink_to(file)
    result = run(data, tmp_path / "out", "oracle")
    assert [entry["id"] for entry in result["broken"]] == ["gone"]
    assert result["items"] == {"total": 4, "evaluated": 3}
    assert result["metrics"]["average_map"] == pytest.approx(100)


@pytest.mark.parametrize(
    "setting",
    [
        "window_frames=0", "least=0", "most=0", "gap=-1", "side=-1", "fps=-1", "fps=nan", "fps=inf",
        "threshold=nan", "threshold=inf", "clip_frames=0", "ious=0.0:0.1:0.5", "ious=0.5,1.5",
        "ious=nan",
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(constructed, setting):
    data = str(constructed / "localization")
    changes = parse_settings(Localization, [setting])
    with pytest.raises(
        UserError, match=f"--set {setting.partition('=')[0]}=.*: expected"
    ) as caught:
        Localization(data, **changes).check()
    assert "\n" not in str(caught.value)
