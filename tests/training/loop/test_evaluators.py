"""Evaluators run when they are due, on an unchanged model, and survive an interruption."""

import shutil
import sys

import jax
import numpy as np
import pytest

from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.data.heldout import HeldoutClip, other_caption
from pyratok_jax.errors import UserError
from pyratok_jax.nn import trace
from pyratok_jax.training.config import parse_flags, training_config
from pyratok_jax.training.distributed.sharding import make_mesh
from pyratok_jax.training.evaluators.heldout import HeldoutReconstruction
from pyratok_jax.training.loop.contracts import ModelView
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.registry import make_evaluators
from pyratok_jax.training.tasks.tokenizer import TokenizerTask
from tests.training.processes import rows
from tests.training.tiny import arrays_equal, tiny_config
from tests.training.worker import LineTask, before_each_batch, without_tensorboard

NORM = {"name": "weight_norm", "every": 4}


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "clu.metric_writers", None)
    without_tensorboard()


def config(*evaluators, **changes):
    values = {"steps": 10, "batch_size": 8, "log_every": 3}
    checkpoint = {"every": 4, "keep": 2, "keep_every": 0}
    return training_config(evaluators=evaluators, **values | {"checkpoint": checkpoint} | changes)


def norm(params):
    return float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in params.values())))


def test_an_evaluator_sees_the_model_of_its_step_and_changes_nothing(tmp_path):
    plain = train(config(), tmp_path / "plain", LineTask(8))
    watched = train(config(NORM), tmp_path / "watched", LineTask(8))
    assert arrays_equal(plain.state.params, watched.state.params)
    leaves = [jax.tree.leaves(trained.state.opt_state) for trained in (plain, watched)]
    assert all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))
    found = {r["step"]: r for r in rows(tmp_path / "watched") if "weight_norm/norm" in r}
    assert list(found) == [4, 8, 10]
    assert all(row.keys() == {"step", "weight_norm/norm"} for row in found.values())
    assert found[10]["weight_norm/norm"] == pytest.approx(norm(watched.state.params), rel=1e-6)
    assert found[4]["weight_norm/norm"] != found[8]["weight_norm/norm"]
    others = [r for r in rows(tmp_path / "watched") if "weight_norm/norm" not in r]
    assert others == rows(tmp_path / "plain")


def test_averages_are_measured_where_there_are_some(tmp_path):
    trained = train(config(NORM, ema_decay=0.5), tmp_path, LineTask(8))
    assert rows(tmp_path)[-1]["weight_norm/norm"] == pytest.approx(
        norm(trained.state.ema), rel=1e-6
    )
    assert norm(trained.state.ema) != pytest.approx(norm(trained.state.params), rel=1e-6)


@pytest.mark.parametrize("cut_before", [5, 6, 9, 10])
def test_a_run_cut_off_anywhere_leaves_the_rows_of_an_unbroken_one(tmp_path, cut_before):
    """Also just after step 4 and 8, which are evaluated and saved."""

    def cut(number):
        if number == cut_before:
            raise RuntimeError("cut off")

    train(config(NORM), tmp_path / "a", LineTask(8))
    task = LineTask(8)
    before_each_batch(task, cut)
    with pytest.raises(RuntimeError, match="cut off"):
        train(config(NORM), tmp_path / "b", task)
    train(config(NORM), tmp_path / "b", LineTask(8))
    assert rows(tmp_path / "b") == rows(tmp_path / "a")


def test_the_time_of_evaluators_is_not_that_of_steps(tmp_path, monkeypatch):
    import time

    from tests.training.worker import WeightNorm

    run = WeightNorm.run

    def slow(self, view, step):
        time.sleep(0.5)
        return run(self, view, step)

    monkeypatch.setattr(WeightNorm, "run", slow)
    slowly = config(NORM | {"every": 1}, checkpoint={"every": 0, "keep": 2, "keep_every": 0})
    assert train(slowly, tmp_path, LineTask(8)).seconds < 10 * 0.5


@pytest.mark.parametrize("allowed", [True, False])
def test_evaluators_obey_the_setting_of_the_attention_kernel(tmp_path, monkeypatch, allowed):
    """They trace programs of their own, outside of the training step."""
    from tests.training.worker import WeightNorm

    run, seen = WeightNorm.run, []

    def watching(self, view, step):
        seen.append(trace.current().fused_attention)
        return run(self, view, step)

    monkeypatch.setattr(WeightNorm, "run", watching)
    train(config(NORM, fused_attention=allowed), tmp_path, LineTask(8))
    assert seen == [allowed] * 3


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (({"name": "fid", "every": 1},), "config.evaluators is 'fid', expected one of heldout"),
        (({"name": "weight_norm", "every": 0},), "every is 0, expected steps >= 1"),
        (({"name": "weight_norm"},), "weight_norm: missing a required.* argument: 'every'"),
        (({"name": "weight_norm", "every": 1, "depth": 2},), "unexpected keyword argument 'depth'"),
        ((NORM, NORM), "weight_norm twice"),
        (({"name": "heldout", "every": 1},), "config.task tokenizer makes none"),
    ],
)
def test_impossible_entries_are_refused(entries, message):
    with pytest.raises(UserError, match=message):
        make_evaluators(config(*entries), LineTask(8))


def test_one_kind_may_have_several_names():
    more = NORM | {"name": "often", "kind": "weight_norm", "every": 1}
    made = make_evaluators(config(NORM, more), LineTask(8))
    assert [(e.name, e.every) for e in made] == [("weight_norm", 4), ("often", 1)]


def test_evaluators_can_be_given_on_the_command_line():
    flag = "--config.evaluators=({'name': 'heldout', 'every': 50},)"
    config, _ = parse_flags(["train", flag], default_config="configs/demo.py")
    assert config.evaluators == ({"name": "heldout", "every": 50},)


def test_another_clips_caption_is_one_that_says_something_else():
    video = np.zeros((1, 16, 16, 3), np.uint8)
    said = ["a cat", None, "a cat", "a dog", "a cat"]
    clips = [HeldoutClip(f"clip{i}", caption, 25.0, video) for i, caption in enumerate(said)]
    assert [other_caption(clips, clip) for clip in clips] == [
        "a dog",
        "a cat",
        "a dog",
        "a cat",
        "a dog",
    ]
    assert other_caption(clips[:3], clips[0]) is None


@pytest.mark.parametrize("weight", [1.5, 0.0])
def test_held_out_clips_tell_how_much_language_is_in_the_tokens(world, weight):
    """At the start all captions are at chance, with a loss that predicts codes from them."""
    settings = tiny_config(world)
    settings.loss.weights.update({"autoregressive": weight, "drift_dinov3": 0.0, "retention": 0.0})
    settings.data.heldout = (str(world / "videos"),)
    task = TokenizerTask(settings)
    evaluator = HeldoutReconstruction(
        settings, task, name="heldout", every=1, buckets=("5x16x16",), clips=2
    )
    partition = Partition(task.system, task.is_trainable)
    if not weight:
        assert not task.predicts_codes and not evaluator._language
        return
    mesh = make_mesh(settings.mesh)
    arrays = partition.trainable, partition.frozen
    with jax.set_mesh(mesh):
        found = evaluator.run(ModelView(mesh, partition, *arrays), 0).metrics
        head = {"alignment.head.kernel": jax.random.normal(jax.random.key(0), (16, 7))}
        trained = evaluator.run(ModelView(mesh, partition, arrays[0] | head, arrays[1]), 1).metrics
    captions = ("own", "none", "shuffled")
    nats = {f"nats/{c}/level_{n}" for c in captions for n in (1, 2, 3, 4)}
    gains = {f"nats/gain/level_{n}" for n in (1, 2, 3, 4)}
    assert set(found) == nats | gains | {"psnr", "psnr_video", "ssim", "ssim_uniform"}
    for name in nats:
        assert found[name] == pytest.approx(6 * np.log(2), rel=0.01), name
    for n in (1, 2, 3, 4):
        gain = trained[f"nats/shuffled/level_{n}"] - trained[f"nats/own/level_{n}"]
        assert trained[f"nats/gain/level_{n}"] == pytest.approx(gain, abs=1e-5)
    assert any(abs(trained[name]) > 1e-4 for name in gains)
    assert trained["psnr"] == pytest.approx(found["psnr"])


def zero_shot(world, **options):
    settings = tiny_config(world)
    settings.loss.weights.update({"drift_dinov3": 0.0, "retention": 0.0})
    settings.data.heldout = (str(world / "videos"),)
    settings.evaluators = ({"name": "zero_shot", "every": 1, **options},)
    task = TokenizerTask(settings)
    (made,) = make_evaluators(settings, task)
    return made, task, make_mesh(settings.mesh)


def test_zero_shot_finds_the_caption_that_the_codes_mean(world, monkeypatch):
    """By the right features it is always right; by those of the next clip always wrong."""
    made, task, mesh = zero_shot(world, buckets=("5x16x16",), clips=3)
    partition = Partition(task.system, task.is_trainable)
    view = ModelView(mesh, partition, partition.trainable, partition.frozen)
    with jax.set_mesh(mesh):
        first = made.run(view, 0).metrics
    assert set(first) == {"top1", "chance_top1", "margin", "videos"}
    assert first["chance_top1"] == pytest.approx(100 / 3) and first["videos"] == 3
    texts = np.eye(3, dtype=np.float32)
    features = iter([*texts, *texts[[1, 2, 0]]])
    monkeypatch.setattr(made, "_programs", (lambda *_: next(features)[None], lambda *_: texts))
    with jax.set_mesh(mesh):
        right, wrong = made.run(view, 1).metrics, made.run(view, 2).metrics
    assert right["top1"] == 100.0 and right["margin"] == pytest.approx(1.0)
    assert wrong["top1"] == 0.0 and wrong["margin"] == pytest.approx(-0.5)


@pytest.mark.slow
def test_zero_shot_of_a_folder_of_classes_scores_as_the_saved_tokenizer_does(world, tmp_path):
    from pyratok_jax.evaluation.models.features import TokenizerFeatures
    from pyratok_jax.evaluation.tasks.classification import Classification

    for number, label in enumerate(("RedSquare", "GreenSquare")):
        (tmp_path / label).mkdir()
        shutil.copy(world / "videos" / f"clip{number}.mp4", tmp_path / label)
    options = {"data": str(tmp_path), "frames": 5, "side": 32}
    made, task, mesh = zero_shot(world, **options, template="a {}")
    assert made._texts == ["a green square", "a red square"]
    partition = Partition(task.system, task.is_trainable)
    with jax.set_mesh(mesh):
        view = ModelView(mesh, partition, partition.trainable, partition.frozen)
        found = made.run(view, 0).metrics
    protocol = Classification(**options, templates="a {}")
    model = TokenizerFeatures(task.wrap(task.system))
    protocol.prepare(model)
    items = {item.id: protocol.evaluate_item(model, item) for item in protocol.items()}
    assert found["top1"] == protocol.aggregate(items)["top1"]
    scores = {name: item["scores"] for name, item in items.items()}
    margins = [s[item["label"]] - s[1 - item["label"]] for s, item in
               zip(scores.values(), items.values(), strict=True)]  # fmt: skip
    assert found["margin"] == pytest.approx(np.mean(margins), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "a video"}, "needs {} once"),
        ({"clips": 1}, "at least two classes or captions"),
        ({"data": "no/such/folder"}, "is no folder"),
    ],
)
def test_zero_shot_refuses_what_cannot_be_measured(world, options, message):
    with pytest.raises(UserError, match=message):
        zero_shot(world, buckets=("5x16x16",), **options)
