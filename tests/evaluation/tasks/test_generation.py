"""The task `generation` on sets whose scores are known, with cheap features in place of I3D."""

import json

import numpy as np
import pytest

from pyratok_jax import evaluate
from pyratok_jax.data.video.writer import VideoWriter
from pyratok_jax.data.world.films import world_film
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.reference import (
    GENERATION_PROTOCOLS,
    reference_clip,
    references,
)
from pyratok_jax.evaluation.models.generators import BaselineSamples, Known, SampleFiles
from pyratok_jax.evaluation.sample_scores import (
    distances,
    faithfulness,
    nearest,
    other_prompts,
    pitfalls,
    prompts_worth,
)
from pyratok_jax.evaluation.tasks.generation import Generation
from pyratok_jax.metrics import fvd
from pyratok_jax.metrics.temporal import MEASURES, temporal_measures

HELDOUT = "builtin:world-heldout"


def cheap_features(clip):
    """A few numbers of places and of changes, as of a network that sees motion."""
    small = clip[:16, ::16, ::16].astype(np.float32) / 255
    change = np.abs(np.diff(small, axis=0)).mean(axis=0)
    return np.concatenate([small.mean(axis=(0, 3)).ravel(), 4 * change.mean(axis=2).ravel()])


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(fvd, "load_features", lambda: cheap_features)


def run(folder, *arguments, data=HELDOUT, samples=16):
    command = ["--task", "generation", "--data", data, "--output", str(folder),
               "--set", f"samples={samples}", "--set", "side=64", *arguments]  # fmt: skip
    assert evaluate.main(command) == 0
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fvd, "load_features", lambda: cheap_features)
        return {kind: run(folder / kind, "--checkpoint", kind, samples=count)
                for kind, count in (("oracle", 16), ("frozen", 16), ("random", 6))}  # fmt: skip


def checks(result):
    return {row["check"]: row["holds"] for row in result["metrics"]["checks"]}


def test_an_oracle_is_perfect_and_worse_generators_are_ordered(results):
    found = {kind: result["metrics"] for kind, result in results.items()}
    assert found["oracle"]["fvd"] == pytest.approx(0, abs=1e-9)
    halves = found["oracle"]["fvd_halves_of_real"]
    assert halves > 0
    assert found["frozen"]["fvd"] > 0.05 and found["random"]["fvd"] > found["frozen"]["fvd"]
    assert found["random"]["fvd"] > halves
    assert found["oracle"]["nearest_real"] == pytest.approx(0, abs=1e-6)
    assert found["random"]["nearest_real"] > found["oracle"]["nearest_among_real"]


def test_world_prompts_are_read_off_the_samples_and_chance_is_said(results):
    found = {kind: result["metrics"] for kind, result in results.items()}
    assert found["oracle"]["faithful"] >= 0.95
    assert found["oracle"]["faithful_chance"] < 0.1
    frozen = {row["prompts"]: row for row in found["frozen"]["faithfulness"]}
    # A first frame shows the things, and only what stays still does what it should.
    assert frozen["all"]["shape"] >= 0.7 and frozen["all"]["motion"] < 0.4
    assert found["random"]["faithful"] == 0
    assert {"seen", "combination", "object", "phrasing"} <= frozen.keys()


def test_consistency_stands_beside_motion(results):
    oracle, frozen = (results[kind]["metrics"] for kind in ("oracle", "frozen"))
    # The frozen generator is the more consistent one: only motion tells that it is worse.
    assert frozen["flicker"] == 0 < oracle["flicker"]
    assert frozen["smoothness"] == 1 > oracle["smoothness"]
    assert frozen["warping_error"] == 0
    assert frozen["dynamic_degree"] == 0 < oracle["dynamic_degree"]
    rows = {row["measure"]: row for row in oracle["over_time"]}
    assert rows.keys() == set(MEASURES)
    assert rows["motion"]["samples"] == rows["motion"]["real clips"] > 0


def test_the_protocol_says_what_does_not_hold(results):
    assert checks(results["oracle"])["equal numbers"] == "yes"
    assert checks(results["oracle"])["enough for 400 features"] == "NO"
    protocol = results["oracle"]["protocol"]
    assert "defined nowhere" in protocol["metrics"]["TC"] and protocol["frames"] == 16
    titles = {peer["method"]: peer["values"] for peer in results["oracle"]["peers"]}
    assert titles["MAGVIT-v2 307M"] == {"FVD": 58}


def test_published_figures_are_marked(results, tmp_path):
    run(tmp_path, "--checkpoint", "frozen", samples=4)
    row = next(
        line for line in (tmp_path / "row.md").read_text().splitlines() if "LARP-L 3" in line
    )
    assert "not measured here" in row


def test_motion_is_measured_where_it_is():
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (48, 96, 3), np.uint8)
    still = np.repeat(wide[None, :, :48], 8, axis=0)
    moving = np.stack([wide[:, 3 * t : 3 * t + 48] for t in range(8)])
    shown = temporal_measures(moving)
    assert shown["motion"] == pytest.approx(3 / 48, rel=0.05) and shown["dynamic_degree"] == 1
    assert temporal_measures(still)["dynamic_degree"] == 0
    noise = rng.integers(0, 256, moving.shape, np.uint8)
    # Motion explains a shift, and nothing explains noise.
    assert shown["warping_error"] < 0.25 * temporal_measures(noise)["warping_error"]
    with pytest.raises(ValueError, match="three"):
        temporal_measures(still[:2])


def test_a_set_its_halves_and_repeats(rng):
    real = rng.normal(size=(40, 6))
    part = {"fvd_real": real, "fvd_made": real, "records": [f"r{n}" for n in range(40)]}
    assert distances([part], 40, False)["fvd"] == pytest.approx(0, abs=1e-9)
    # Four repeats: their mean and deviation; a rest that is no whole set is left out.
    made = np.concatenate([real + shift for shift in (0.0, 1.0, 2.0, 3.0)] + [real[:3]])
    found = distances([part | {"fvd_made": made}], 40, False)
    shifts = 6 * np.array([0.0, 1, 4, 9])
    assert found["fvd_repeats"] == 4 and found["fvd"] == pytest.approx(shifts.mean())
    assert found["fvd_deviation"] == pytest.approx(shifts.std())
    one = fvd.frechet_distance(real[:20], 2 * real[20:], biased=True)
    centred = fvd.frechet_distance(real[:20], 2 * real[20:])
    means = np.sum((real[:20].mean(axis=0) - 2 * real[20:].mean(axis=0)) ** 2)
    assert one - means == pytest.approx((centred - means) * 19 / 20)


def test_a_clip_that_was_learned_by_heart_is_named(rng):
    real, made = rng.normal(size=(30, 8)), rng.normal(size=(30, 8))
    made[7] = real[21] + 1e-4
    part = {"fvd_real": real, "fvd_made": made, "records": [f"r{n}" for n in range(30)]}
    closest = nearest([part, part], 30)["nearest_pairs"][0]
    assert (closest["sample"], closest["clip"]) == (7, "r21")


def test_chance_never_pairs_a_video_with_its_own_prompt():
    """Also where the same prompts come again: rows of a second repeat follow those of the first."""
    seen = [[["red", "circle", "left"]], [["blue", "star", "right"]]]
    rows = [{"asked": one, "seen": one, "kind": "seen"} for one in seen * 2]
    found = faithfulness([{"world": rows}], 2)
    assert found["faithful"] == 1.0 and found["faithful_chance"] == 0.0


def _write_clip(path):
    path.parent.mkdir(exist_ok=True)
    with VideoWriter(path, fps=10, crf=4) as writer:
        for level in range(0, 240, 8):
            writer.write(np.full((48, 64, 3), level, np.uint8))


def test_reference_clips_are_windows_at_the_interval(tmp_path):
    _write_clip(tmp_path / "clip.mp4")
    setup = dict(frames=4, interval=3, side=32, seed=0)
    found = references(str(tmp_path), samples=5, condition="none", **setup)
    assert len(found) == 5 and found[0].prompt == ""
    starts = set()
    for number in range(5):
        clip = reference_clip(found[number].record, number, **setup)
        assert clip.shape == (4, 32, 32, 3)
        levels = clip.mean(axis=(1, 2, 3))
        np.testing.assert_allclose(np.diff(levels), 24, atol=3)
        starts.add(round(float(levels[0])))
    assert len(starts) > 1
    with pytest.raises(UserError, match="no clip of 61"):
        references(str(tmp_path), samples=1, condition="none", **setup | {"frames": 21})
    with pytest.raises(UserError, match="no caption"):
        references(str(tmp_path), samples=1, condition="captions", **setup)


def test_another_prompt_says_something_else():
    assert other_prompts(["a", "a", "b", "c"]) == ["b", "b", "c", "a"]
    assert other_prompts(["a", "", "b", "b"]) == ["b", "b", "a", "a"]
    for alike in (["a", "a"], ["", ""], ["a", ""]):
        assert other_prompts(alike) == ["", ""]
    slow = lambda all_, n: next(x for x in [*all_[n:], *all_] if x and x != all_[n])  # noqa: E731
    said = list(np.random.default_rng(0).choice(["", *"abc"], 200))
    assert other_prompts(said) == [slow(said, n) for n in range(len(said))]


def test_nats_are_tabulated_by_prompt():
    nats = {"nats": 4.0, "nats_none": 4.5, "nats_another": 5.0, "nats_first_group": 3.0,
            "nats_first_group_none": 3.0, "nats_first_group_another": 3.0, "nats_level_1": 1.0,
            "nats_level_1_none": 2.0, "nats_level_1_another": 3.0}  # fmt: skip
    assert prompts_worth(nats)["prompts_worth"] == [
        {"tokens": "all", "own prompt": 4.0, "none": 4.5, "another's": 5.0},
        {"tokens": "level 1", "own prompt": 1.0, "none": 2.0, "another's": 3.0},
    ]
    assert prompts_worth({"nats": 4.0}) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--protocol", "larp"), "not the protocol larp: .* compares 10000 clips, and .* has 1 "),
        (("--protocol", "tats", "--set", "samples=4"), "it has samples=2048, not 4"),
        (("--protocol", "tats", "--set", "fvd=false"), "it has fvd=True, not False"),
        (("--protocol", "tats", "--set", "interval=2"), "it has interval=1, not 2"),
        (("--set", "claims=mine"), "expected one of styleganv"),
    ],
)
def test_a_run_does_not_get_the_name_of_a_protocol_that_it_is_not(tmp_path, arguments, message):
    _write_clip(tmp_path / "clips" / "clip.mp4")
    command = ["--task", "generation", "--data", str(tmp_path / "clips"), "--checkpoint", "oracle",
               "--output", str(tmp_path / "out"), "--set", "condition=classes"]  # fmt: skip
    (tmp_path / "clips" / "clip.txt").write_text("Walking")
    with pytest.raises(UserError, match=message) as caught:
        evaluate.main([*command, *arguments])
    assert "\n" not in str(caught.value)


def test_a_deviating_run_marks_the_name(tmp_path):
    _write_clip(tmp_path / "clips" / "clip.mp4")
    (tmp_path / "clips" / "clip.txt").write_text("Walking")
    result = run(tmp_path / "out", "--checkpoint", "oracle", "--protocol", "tats", "--set",
                 "deviate=true", data=str(tmp_path / "clips"), samples=4)  # fmt: skip
    head = (tmp_path / "out" / "row.md").read_text()
    assert "FVD (not tats)" in head and result["protocol"]["claims"] == "tats"
    assert checks(result)["every real clip once"] == "NO"


def test_clips_of_a_prior_at_another_rate_are_refused_under_a_name(tmp_path):
    task = Generation(data="", **GENERATION_PROTOCOLS["tats"])
    model = BaselineSamples("oracle")
    task._rate, model.fps = 25.0, 24.9
    task.prepare(model)
    model.fps = 8.0
    with pytest.raises(UserError, match=r"real 25.00 frames/s, samples 8.00"):
        task.prepare(model)


def test_four_repeats_are_no_clip_that_comes_again(rng):
    real = rng.normal(size=(6, 4))
    ids = [f"r{n}" for n in range(6)]
    part = {"fvd_real": real, "fvd_made": real, "records": ids, "rates": [None, None],
            "range": [[0, 255], [0, 255]]}  # fmt: skip
    again = [part | {"records": [*ids[:5], "r0"]}] * 4
    setup = {"samples": 6, "repeats": 4, "interval": 1, "measured": True}
    for parts, holds in (([part] * 4, "yes"), (again, "NO")):
        # Only the first repeat's real clips are compared with.
        found = {row["check"]: row["holds"]
                 for row in pitfalls(parts, distances(parts, 6, True), **setup)}  # fmt: skip
        assert found["every real clip once"] == holds
        assert found["equal numbers"] == found["number of the protocol"] == "yes"


class Looking(BaselineSamples):
    """The oracle, which also knows reconstructions: the clips themselves."""

    def look(self, real, prompt, number, another=""):
        return Known(real, (np.zeros((1, 1, 1), np.uint32),), {"nats": float(number)})


def test_a_block_that_begins_the_second_repeat_looks_at_real_clips_once(monkeypatch, tmp_path):
    monkeypatch.setattr(Generation, "baseline", lambda self, kind: Looking(kind))
    found = run(tmp_path, "--checkpoint", "oracle", "--set", "repeats=2", "--set", "batch=4",
                samples=6)  # fmt: skip
    assert found["metrics"]["fvd_reconstruction"] == pytest.approx(0, abs=1e-9)
    assert found["metrics"]["nats"] == pytest.approx(np.mean(range(6)))
    kinds = {row["prompts"]: row["number"] for row in found["metrics"]["faithfulness"]}
    assert kinds["reconstructions of the real clips"] == 6
    head, _, cells = (tmp_path / "row.md").read_text().splitlines()[:3]
    assert head.endswith("| blocks |") and cells.endswith("| 3 of 3 |")


def test_a_damaged_clip_is_not_left_out_in_silence(tmp_path):
    _write_clip(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    setup = dict(frames=4, interval=1, side=32, seed=0)
    found = references(str(tmp_path), samples=2, condition="none", **setup)
    assert len({one.record.id for one in found}) == 2


def test_other_content_of_the_same_size_is_another_method(tmp_path):
    (tmp_path / "samples.jsonl").write_text(json.dumps({"file": "a.mp4", "prompt": ""}))
    hashes = set()
    for content in (b"one", b"two"):
        (tmp_path / "a.mp4").write_bytes(content)
        hashes.add(SampleFiles(str(tmp_path), "m").checkpoint_hash)
    assert len(hashes) == 2


def test_protocols_have_settings_that_exist():
    for name, settings in GENERATION_PROTOCOLS.items():
        task = Generation(data=HELDOUT, **settings)
        task.check()
        assert task.samples >= 2048, name
    assert Generation(data="", **GENERATION_PROTOCOLS["magvit"]).repeats == 4


def test_files_of_another_method_are_scored_and_wrong_ones_refused(tmp_path, results):
    folder = tmp_path / "videos"
    folder.mkdir()
    found = references(HELDOUT, samples=6, frames=16, interval=1, side=64, seed=0,
                       condition="captions")  # fmt: skip
    lines = []
    for number, one in enumerate(found):
        clip = world_film("world-heldout", one.world.number).draw(16, 64, 64)
        with VideoWriter(folder / f"{number}.mp4", fps=10, crf=2) as writer:
            for frame in clip:
                writer.write(frame)
        lines.append(json.dumps({"file": f"{number}.mp4", "prompt": one.prompt, "seed": 3}))
    (folder / "samples.jsonl").write_text("\n".join(lines))
    result = run(tmp_path / "out", "--reconstructions", str(folder), "--name", "peer", samples=6)
    assert result["metrics"]["faithful"] >= 0.8 and result["method"] == "peer"
    (folder / "samples.jsonl").write_text("\n".join(lines[1:] + lines[:1]))
    with pytest.raises(UserError, match="the protocol's is"):
        run(tmp_path / "other", "--reconstructions", str(folder), "--name", "peer", samples=6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint", "oracle", "--set", "condition=moods"), "expected captions, classes"),
        (("--checkpoint", "oracle", "--set", "covariance=none"), "biased or unbiased"),
        (("--checkpoint", "oracle", "--set", "repeats=0"), "at least 1"),
        (("--checkpoint", "oracle", "--set", "guidance=nan"), "--set guidance=nan: expected a"),
        (("--checkpoint", "oracle", "--set", "guidance=-2"), "from 0, or -1 for that of the train"),
        (("--checkpoint", "oracle", "--set", "choice_temperature=-0.5"), "from 0, or -1 for"),
        (("--checkpoint", "oracle", "--set", "choice_temperature=inf"), "from 0, or -1 for"),
        (("--checkpoint", "oracle", "--protocol", "imagenet"), "knows styleganv"),
        (("--checkpoint", "nowhere"), "no such folder"),
    ],
)
def test_mistakes_are_refused_in_one_line(tmp_path, arguments, message):
    command = ["--task", "generation", "--data", HELDOUT, "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        evaluate.main([*command, *arguments])


def test_only_this_task_knows_a_frozen_generator(tmp_path):
    with pytest.raises(UserError):
        evaluate.main(["--task", "reconstruction", "--data", HELDOUT, "--checkpoint", "frozen",
                       "--output", str(tmp_path), "--set", "lpips=none"])  # fmt: skip
