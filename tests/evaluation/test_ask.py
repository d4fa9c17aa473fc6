"""`python -m pyratok_jax.ask` on a clip, with a tiny tokenizer of random weights."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyratok_jax import ask
from pyratok_jax.data.video.files import iter_frames
from pyratok_jax.data.video.writer import VideoWriter
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.models.features import Features, LevelFeatures
from pyratok_jax.evaluation.user_clip import (
    ClipQuestions,
    Moments,
    Segmented,
    UserClip,
    read_user_clip,
)
from pyratok_jax.evaluation.vision.masks import FieldSettings
from pyratok_jax.evaluation.vision.temporal_detection import ProposalSettings

ROOT = Path(__file__).parents[2]
RED, GREY = (230, 20, 20), (90, 90, 90)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Nine frames of grey; from the fifth on a red square stands in the upper left."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, fps=4, crf=4) as writer:
        for number in range(9):
            frame = np.full((32, 48, 3), GREY, np.uint8)
            if number >= 4:
                frame[:16, :16] = RED
            writer.write(frame)
    return path


@pytest.fixture
def run(clip, tokenizer, tmp_path, monkeypatch):
    """Runs the command with the tiny tokenizer; returns result.json and the folder."""
    monkeypatch.setattr("pyratok_jax.tokenizer.load_tokenizer", lambda folder: tokenizer)

    def call(*arguments: str) -> dict:
        output = tmp_path / "out"
        args = [str(clip), "--checkpoint", "x", "--output", str(output), *arguments]
        assert ask.main(args) == 0
        return json.loads((output / "result.json").read_text())

    return call


def test_everything_at_once(run, tmp_path):
    found = run(
        "--segment", "red square", "--segment", "ball", "--find", "the ball moves left",
        "--question", "What is red?", "--choices", "a square,a ball", "--attention", "2",
        "--caption", "a red ball", "--window", "5", "--smooth", "3", "--crf-iterations", "1",
    )  # fmt: skip
    output = tmp_path / "out"
    assert found["frames"] == 9 and found["size"] == [32, 48]
    masks = np.load(output / "masks.npz")
    assert masks["masks"].shape == (2, 9, 32, 48) and list(masks["phrases"]) == [
        "red square", "ball",
    ]  # fmt: skip
    assert [row["phrase"] for row in found["segment"]] == ["red square", "ball"]
    overlay = np.stack(list(iter_frames(output / "segment.mp4")))
    assert overlay.shape == (9, 32 + 2 * 14, 48, 3)
    assert len(list(iter_frames(output / "heat.mp4"))) == 9
    assert len(found["find"][0]["scores"]) == 9 and (output / "find_1.png").stat().st_size > 0
    assert found["question"]["answer"] in ("a square", "a ball")
    assert set(found["question"]["scores"]) == {"a square", "a ball"}
    weights = found["attention"]["mean_weights"]
    assert len(weights) == len(found["attention"]["pieces"])
    # A token spreads all its attention over the caption.
    assert sum(weights) == pytest.approx(1.0, abs=1e-4)
    assert len(list(iter_frames(output / "attention_2.mp4"))) == 9


def test_a_question_without_choices_is_answered_in_words(run, monkeypatch):
    seen = {}

    def write(self, question, projector):
        seen["asked"] = question, projector
        return "a square"

    monkeypatch.setattr(ClipQuestions, "write", write)
    found = run("--question", "What is red?", "--projector", "folder")
    assert found["question"]["answer"] == "a square"
    assert seen["asked"] == ("What is red?", "folder")


def test_options_reach_what_is_asked(run, monkeypatch):
    seen = {}

    def segment(self, phrases, settings, level=0, *, contrast=False):
        seen["segment"] = (level, contrast)
        shape = (len(phrases), *self.clip.frames.shape[:3])
        return Segmented(np.zeros(shape, bool), np.zeros(shape, np.float32))

    def find(self, sentences, settings, level=0, *, pooling="", contrast=False):
        seen["find"] = (level, pooling, contrast)
        return [Moments((), np.zeros(len(self.clip.frames))) for _ in sentences]

    monkeypatch.setattr(ClipQuestions, "segment", segment)
    monkeypatch.setattr(ClipQuestions, "find", find)
    asked = ("--segment", "a", "--segment", "b", "--find", "c", "--find", "d")
    run(*asked)
    assert seen == {"segment": (0, False), "find": (0, "peaks", False)}
    run(*asked, "--level", "2", "--contrast", "--pooling", "mean")
    assert seen == {"segment": (1, True), "find": (1, "mean", True)}


def test_a_clip_in_a_bucket_is_answered_there(run, bucket, clip, tmp_path, capsys):
    bucket.store("clips/ball.mp4", clip.read_bytes())
    asked = ("--segment", "ball", "--window", "5", "--crf-iterations", "0")
    place = ["gs://bucket/clips/ball.mp4", "--checkpoint", "x", "--output", "gs://bucket/answers"]
    assert ask.main([*place, *asked]) == 0
    assert "written: gs://bucket/answers/result.json" in capsys.readouterr().out
    local = run(*asked)
    found = json.loads(bucket.objects["answers/result.json"][0])
    assert found["segment"] == local["segment"] and found["clip"] == place[0]
    for name in ("segment.mp4", "heat.mp4"):
        assert bucket.objects[f"answers/{name}"][0] == (tmp_path / "out" / name).read_bytes()
    assert "answers/masks.npz" in bucket.objects
    with pytest.raises(UserError, match="no such file"):
        ask.main(["gs://bucket/none.mp4", *place[1:], *asked])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing is asked"),
        (("--question", "What?"), "needs --choices a,b,c, or --projector"),
        (("--segment", "x", "--choices", "a,b"), "--choices needs the --question"),
        (("--attention", "1"), "needs --caption"),
        (("--segment", " "), "need words"),
        (("--segment", "x", "--window", "0"), "--window 0"),
        (("--segment", "x", "--threshold", "nan"), "--threshold nan: expected a finite"),
        (("--segment", "x", "--fps", "nan"), "--fps nan: expected a finite number from 0"),
        (("--find", "x", "--fps", "inf"), "--fps inf: expected a finite number from 0"),
        (("--find", "x", "--side", "-1"), "--side -1: expected a finite number from 0"),
        (("--segment", "x", "--level", "9"), "no level 9"),
        (("--find", "x", "--level", "9"), "no level 9"),
        (
            ("--segment", "x", "--find", "y", "--find", "z", "--contrast"),
            "--segment at least twice",
        ),
        (("--segment", "x", "--segment", "x ", "--contrast"), "--segment at least twice"),
        (
            ("--segment", "x", "--segment", "y", "--find", "z", "--contrast"),
            "--find at least twice",
        ),
    ],
)
def test_one_line_about_what_is_wrong(run, arguments, said):
    with pytest.raises(UserError, match=said) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--segment", "x", "--caption", "a dog"), "--caption is for --attention"),
        (("--attention", "1", "--caption", " "), "needs --caption"),
        (("--question", "What?", "--choices", "a"), "--choices has 1 answers"),
        (("--question", "What?", "--choices", "yes, no,yes"), "--choices has yes more than once"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(
    clip, tmp_path, arguments, said
):
    args = [str(clip), "--checkpoint", "none", "--output", str(tmp_path / "out"), *arguments]
    with pytest.raises(UserError, match=said) as caught:
        ask.main(args)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_missing_clip_is_named_before_anything_is_loaded(tmp_path):
    args = ["none.mp4", "--checkpoint", "x", "--output", str(tmp_path), "--segment", "x"]
    with pytest.raises(UserError, match=r"no such file: none\.mp4"):
        ask.main(args)


class Known(ClipQuestions):
    """A clip whose tokens say "red square" where it is, and whose texts are unit vectors."""

    def __init__(self, clip: UserClip) -> None:
        self.clip, self.window = clip, 5
        values = np.zeros((9, 4, 6, 2), np.float32)
        values[..., 1] = 1.0
        values[4:, :2, :2] = (1.0, 0.0)
        # In place of the cached properties.
        self.features = self.moving = Features((LevelFeatures(values, np.arange(9), (8, 8)),))
        self.tokenizer = type("T", (), {"config": type("C", (), {"grids": ((1, 8),)})})

    def texts(self, texts):
        return np.array([[1.0, 0.0] if "red" in text else [0.0, 1.0] for text in texts])


@pytest.fixture
def known(clip):
    return Known(read_user_clip(clip, frames=50, side=0))


def test_masks_are_where_the_tokens_say_so(known):
    found = known.segment(["red square", "grey"], FieldSettings(crf_iterations=0))
    truth = np.zeros((9, 32, 48), bool)
    truth[4:, :16, :16] = True
    assert (found.masks[0] == truth).mean() > 0.97
    assert (found.masks[1] == ~truth).mean() > 0.97


def test_moments_are_when_the_tokens_say_so(known):
    (found,) = known.find(["something red"], ProposalSettings(window_frames=1))
    assert [(run.first, run.end) for run in found.runs] == [(4, 9)]


def test_contrast_is_between_what_is_asked_for(known):
    settings = ProposalSettings(window_frames=1)
    red, grey = known.find(["red", "grey"], settings, pooling="peaks", contrast=True)
    assert [(run.first, run.end) for run in red.runs] == [(4, 9)]
    assert [(run.first, run.end) for run in grey.runs] == [(0, 4)]
    np.testing.assert_allclose(red.scores, -grey.scores, atol=1e-6)
    field = FieldSettings(crf_iterations=0)
    plain, contrast = (
        known.segment(["red square", "grey"], field, contrast=c).similarity for c in (False, True)
    )
    np.testing.assert_allclose(contrast, plain - plain.mean(axis=0), atol=1e-6)


def test_choices_are_compared_by_what_tells_them_apart(known):
    assert known.choose("Which colour?", ["grey", "red"]).option == 0
    for pooling in ("tokens", "peaks"):
        found = known.choose("Which colour?", ["grey", "red"], pooling=pooling, level=0)
        assert found.option == 0
    with pytest.raises(UserError, match="level"):
        known.choose("Which colour?", ["grey", "red"], level=9)


def test_frames_are_taken_at_a_rate_and_up_to_a_number(clip):
    assert len(read_user_clip(clip, frames=50, side=0, fps=2).frames) == 5
    short = read_user_clip(clip, frames=3, side=16)
    assert short.frames.shape == (3, 16, 24, 3) and short.more


def test_a_clip_can_be_asked_without_the_packages_of_benchmarks():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['pycocotools', 'trackeval']));"
        "import pyratok_jax.evaluation.user_clip"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
