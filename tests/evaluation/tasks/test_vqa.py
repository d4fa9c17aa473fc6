"""Questions about videos: layouts, answers in free text, the projector, and the task."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.errors import UserError
from pyratok_jax.evaluate import main
from pyratok_jax.evaluation.data.mvbench import (
    LAYOUT,
    Question,
    load_questions,
    parse_answer,
    prompt,
)
from pyratok_jax.evaluation.models.answering import (
    MODES,
    CosineAnswers,
    LanguageAnswers,
    load_projector,
)
from pyratok_jax.evaluation.models.features import Features, LevelFeatures
from pyratok_jax.evaluation.task import parse_settings
from pyratok_jax.evaluation.tasks.vqa import VideoQuestions, read_clip_of
from pyratok_jax.models.projector import Projector, pool_grid
from tests.evaluation.tiny import Letters

OPTIONS = ("a red ball", "a red ball and a cup", "nothing", "B side")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(B)", 1),
        ("B", 1),
        ("B.", 1),
        ("b)", 1),
        ("[C] nothing", 2),
        ("The answer is C", 2),
        ("Answer: D, because the man turned.", 3),
        ("Option A fits best", 0),
        ("I see a red ball.", 0),
        ("It is a red ball and a cup!", 1),
        ("Nothing happens at all", 2),
        ("I think (A) since the ball is red", 0),
        ("A man holds it", None),
        ("no idea", None),
        ("", None),
        ("(E)", None),
        ("nothing, or the B side", None),
        ("Probably D", 3),
    ],
)
def test_answers_in_free_text(text, expected):
    assert parse_answer(text, OPTIONS) == expected


def test_the_prompt_lists_the_options_by_letter():
    text = prompt(Question("action_count", 0, "v.mp4", "How many?", ("1", "2"), 0))
    assert text.splitlines()[0] == "Question: How many?"
    assert "(A) 1\n(B) 2" in text and text.endswith("Answer: (")


def test_all_twenty_layouts_are_read(constructed):
    questions = load_questions(str(constructed / "mvbench"))
    assert [q.task for q in questions] == list(LAYOUT) and len(LAYOUT) == 20
    for question in questions:
        assert read_clip_of(question, 5, 0).shape == (5, 48, 48, 3)
        assert (question.start is None) == (not LAYOUT[question.task].bounded)


def test_bounds_choose_the_seconds_asked_about(tmp_path):
    from PIL import Image

    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number,) * 3).save(tmp_path / f"{number:05d}.jpg")
    question = Question("episodic_reasoning", 0, str(tmp_path), "?", ("a",), 0, 1.0, 2.0, True)
    greys = read_clip_of(question, 3, 0)[:, 4, 4, 0].astype(int)
    assert np.abs(greys - [60, 80, 100]).max() <= 3


def test_broken_question_files_say_what_is_wrong(tmp_path):
    (tmp_path / "json").mkdir()
    path = tmp_path / "json" / "action_count.json"
    row = {"video": "v.mp4", "question": "?", "candidates": ["1", "2"], "answer": "2"}
    for content, message in (
        ("{", "not JSON"),
        ("{}", "expected a list"),
        (json.dumps([row | {"answer": "3"}]), "question 0"),
        (json.dumps([{"video": "v.mp4"}]), "question 0"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            load_questions(str(tmp_path))
    with pytest.raises(UserError, match="no task of MVBench"):
        load_questions(str(tmp_path / "json"))
    with pytest.raises(UserError, match="has no task x"):
        load_questions(str(tmp_path), ["x"])
    with pytest.raises(UserError, match="does not exist"):
        load_questions(str(tmp_path), ["moving_count"])


def run(data, output, checkpoint, *more):
    main(
        ["--task", "vqa", "--checkpoint", checkpoint, "--data", str(data)]
        + ["--output", str(output), *more]
    )
    return json.loads((output / "results.json").read_text())


def test_oracle_is_always_right_and_random_at_chance(constructed, tmp_path, monkeypatch):
    best = run(constructed / "mvbench", tmp_path / "o", "oracle")["metrics"]
    assert best["accuracy"] == 100 and best["tasks"] == 20 and best["without_an_option"] == 0
    assert "| questions |" in (tmp_path / "o" / "row.md").read_text()
    root = tmp_path / "data"
    (root / "json").mkdir(parents=True)
    row = {"question": "?", "candidates": list("wxyz"), "answer": "x"}
    rows = [row | {"video": f"{i}.mp4"} for i in range(400)]
    (root / "json" / "moving_count.json").write_text(json.dumps(rows))
    clip = np.zeros((2, 8, 8, 3), np.uint8)
    monkeypatch.setattr("pyratok_jax.evaluation.tasks.vqa.read_clip_of", lambda *a: clip)
    blind = run(root, tmp_path / "r", "random")["metrics"]
    # Chance is 25; four standard errors are 8.7.
    assert abs(blind["accuracy"] - 25) < 8.7 and blind["chance"] == 25


def make_projector(tokenizer, seed=3):
    width = tokenizer.text.language_model.config.width
    return Projector(2, width, width, rngs=nnx.Rngs(seed), hidden=8, most=(2, 2, 2))


def test_pooling_takes_means_of_equal_parts():
    x = jnp.arange(5.0)[None, :, None, None, None] * jnp.ones((1, 5, 4, 2, 1))
    pooled = pool_grid(x, (2, 1, 4))
    assert pooled.shape == (1, 2 * 1 * 2, 1)
    np.testing.assert_allclose(pooled[0, :, 0], [1, 1, 3.5, 3.5])


@pytest.mark.parametrize("mode", MODES)
def test_the_language_model_answers_in_every_mode(tokenizer, mode, rng):
    clip = rng.integers(0, 255, (5, 16, 16, 3)).astype(np.uint8)
    question = Question("action_count", 0, "v", "How many?", ("one", "two", "three"), 1)
    answers = LanguageAnswers(tokenizer, make_projector(tokenizer), mode=mode, new_tokens=3)
    answer = answers.answer(clip, question)
    # 2x1x1 and 2x2x2 tokens of 6 bits.
    assert answer.bits == 6 * (2 + 8)
    if mode == "generate":
        assert answer.text.startswith("(")
    else:
        assert len(answer.scores) == 3 and answer.option == int(np.argmax(answer.scores))
        assert np.isfinite(answer.scores).all()


def test_a_written_answer_is_what_follows_token_by_token(tokenizer, rng):
    """Greedy, without a cache: projected tokens, the question, and what has been written."""
    clip = rng.integers(0, 255, (5, 16, 16, 3)).astype(np.uint8)
    answers = LanguageAnswers(tokenizer, make_projector(tokenizer), mode="generate", new_tokens=3)
    written = answers.write(clip, "What is red?")
    visual, _ = answers._visual(clip)
    model, tokens = answers.model, answers._ids("Question: What is red?\nAnswer:")
    asked = len(tokens)
    while len(tokens) < asked + 3 and tokens[-1] not in model.config.eos:
        x = jnp.concatenate([jnp.asarray(visual)[None], model.embed(jnp.asarray([tokens]))], axis=1)
        tokens.append(int(jnp.argmax(logits_of(model, x)[0, -1])))
    text = answers.words.decode(tokens[asked:], skip_special_tokens=True)
    assert written == text.strip().partition("\n")[0].strip() and written
    assert len(visual) > 0


def test_scores_depend_on_the_clip_only_through_the_projector(tokenizer, rng):
    clips = rng.integers(0, 255, (2, 5, 16, 16, 3)).astype(np.uint8)
    question = Question("action_count", 0, "v", "?", ("one", "two"), 1)
    seeing = LanguageAnswers(tokenizer, make_projector(tokenizer))
    blind = LanguageAnswers(tokenizer, None)
    a, b = (seeing.answer(clip, question).scores for clip in clips)
    c, d = (blind.answer(clip, question).scores for clip in clips)
    assert a != b and c == d


logits_of = nnx.jit(lambda model, x: model.logits(model(x).hidden))


def test_option_likelihood_is_the_mean_over_the_options_own_tokens(tokenizer):
    answers = LanguageAnswers(tokenizer, None, mode="likelihood")
    question = Question("action_count", 0, "v", "?", ("one", "seventeen"), 1)
    scores = answers.answer(np.zeros((1, 16, 16, 3), np.uint8), question).scores
    model, words = tokenizer.text.language_model, Letters()
    for score, ending in zip(scores, ("A) one", "B) seventeen"), strict=True):
        head = words(prompt(question))["input_ids"]
        tail = words(ending, add_special_tokens=False)["input_ids"]
        ids = jnp.asarray([head + tail])
        logs = jax.nn.log_softmax(logits_of(model, ids), axis=-1)[0]
        own = [logs[len(head) - 1 + i, token] for i, token in enumerate(tail)]
        assert score == pytest.approx(float(np.mean(own)), abs=1e-4)


def test_the_option_that_is_like_the_tokens_is_chosen_without_training(rng):
    """Three tokens of a level point to one of four texts; the question is in all of them."""
    directions = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    asked = Question("a", 0, "v.mp4", "What is it?", ("red", "blue", "big", "small"), 2)
    said = {f"What is it? {option}.": directions[n] for n, option in enumerate(asked.options)}
    level = np.tile(directions[2] + 5 * directions[7], (1, 1, 3, 1)).astype(np.float32)

    class Seen:
        checkpoint_hash = "seen"

        def video(self, clip, truth=None, caption=None):
            noise = rng.normal(size=level.shape).astype(np.float32)
            return Features(
                tuple(LevelFeatures(x, np.zeros(1, int), (1, 1)) for x in (level, noise))
            )

        def texts(self, captions):
            return np.stack([said[one] + 3 * directions[6] for one in captions])

    clip = np.zeros((1, 4, 4, 3), np.uint8)
    for pooling in ("mean", "peaks", "tokens"):
        answer = CosineAnswers(Seen(), pooling, [0]).answer(clip, asked)
        assert answer.option == 2 and len(answer.scores) == 4, pooling
    with pytest.raises(UserError, match="level"):
        CosineAnswers(Seen(), "mean", [4]).answer(clip, asked)
    hashes = {
        CosineAnswers(Seen(), p, x).checkpoint_hash for p in ("mean", "peaks") for x in (None, [0])
    }
    assert len(hashes) == 4


def test_a_projector_must_be_named_and_fit(tokenizer, tmp_path):
    task = VideoQuestions(data="d")
    with pytest.raises(UserError, match="projector=DIR"):
        task.wrap(tokenizer)
    assert VideoQuestions(data="d", projector="none").wrap(tokenizer).projector is None
    with pytest.raises(UserError, match="does not exist"):
        VideoQuestions(data="d", projector=str(tmp_path)).wrap(tokenizer)
    with pytest.raises(UserError, match="mode"):
        VideoQuestions(data="d", mode="x").check()
    bare = types.SimpleNamespace(text=None, captions=None)
    with pytest.raises(UserError, match="no language model"):
        LanguageAnswers(bare, None)


@pytest.fixture
def config(constructed):
    from configs.vqa_projector import get_config

    config = get_config("smoke")
    config.data.sources, config.data.buckets = (str(constructed / "videos"),), ("5x16x16",)
    config.data.decode_time_limit = 0.0
    config.projector.hidden, config.projector.most = 8, (2, 2, 2)
    return config


def test_training_learns_captions_and_is_read_back(tokenizer, config, tmp_path, monkeypatch):
    from pyratok_jax.training.tasks import projector as training

    monkeypatch.setattr(training, "load_tokenizer", lambda spec: tokenizer)
    config.steps, config.log_every = 12, 1
    config.optimizer.update({"learning_rate": 3e-2, "warmup": 0})
    outputs = training.run(config, tmp_path)
    assert outputs["projector"] == tmp_path
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["caption_nll"] for line in lines if "caption_nll" in line]
    assert losses[-1] < losses[0] - 0.05
    loaded, digest = load_projector(tmp_path, tokenizer)
    fresh = training.make_projector(training.ProjectorTask(config).arguments(), nnx.Rngs(0))
    assert len(digest) == 64
    assert not np.array_equal(loaded.ends[...], fresh.ends[...])
    answers = VideoQuestions(data="d", projector=str(tmp_path)).wrap(tokenizer)
    assert answers.checkpoint_hash != tokenizer.checkpoint_hash
    # A resume that is refused changes nothing: neither with another config nor another tokenizer.
    described = (tmp_path / "projector.json").read_bytes()
    config.projector.hidden = 16
    with pytest.raises(UserError, match="projector.hidden"):
        training.run(config, tmp_path)
    config.projector.hidden = 8
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "checkpoint_hash", "3" * 64)
        with pytest.raises(UserError, match="was trained for the tokenizer"):
            training.run(config, tmp_path)
    assert (tmp_path / "projector.json").read_bytes() == described
    other = types.SimpleNamespace(checkpoint_hash="2" * 64)
    with pytest.raises(UserError, match="was trained for the tokenizer"):
        load_projector(tmp_path, other)


def test_only_the_projector_trains_and_the_loss_is_that_of_the_caption(tokenizer, config):
    from pyratok_jax.checkpoints.partition import Partition
    from pyratok_jax.training.tasks.projector import ProjectorTask, caption_loss

    task = ProjectorTask(config, tokenizer)
    partition = Partition(task.system, task.is_trainable)
    assert partition.trainable and all(n.startswith("projector.") for n in partition.trainable)
    ids, mask = tokenizer.captions(["abc", "a"])
    video = np.zeros((2, 5, 16, 16, 3), np.uint8)
    batch = {
        "video": jnp.asarray(video),
        "text_ids": jnp.asarray(ids),
        "text_mask": jnp.asarray(mask),
    }
    loss, terms = nnx.jit(caption_loss)(task.system, batch)
    model = tokenizer.text.language_model
    black = jnp.full((1, 5, 16, 16, 3), -1.0)
    visual = nnx.jit(lambda system, x: system.visual(x))(task.system, black)
    total = []
    for row, count in ((0, 4), (1, 2)):
        x = jnp.concatenate(
            [visual, model.embed(jnp.asarray(ids[row : row + 1, : count - 1]))], axis=1
        )
        logs = jax.nn.log_softmax(logits_of(model, x), axis=-1)[0, visual.shape[1] - 1 :]
        total += [-float(logs[i, ids[row, i]]) for i in range(count)]
    assert float(loss) == pytest.approx(np.mean(total), abs=1e-4)
    assert 0 <= float(terms["token_accuracy"]) <= 1


@pytest.mark.parametrize("setting", ["frames=0", "side=-1", "new_tokens=0"])
def test_numbers_out_of_range_are_refused(constructed, setting):
    changes = parse_settings(VideoQuestions, [setting])
    with pytest.raises(UserError, match=f"--set {setting}: expected a finite number from"):
        VideoQuestions(str(constructed / "mvbench"), **changes).check()
