"""A stage takes over what it shares with the stage before, keeps what is new, and says which."""

import dataclasses
import json
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.world import alignment as stored_features
from benchmarks.world.features import Networks
from benchmarks.world.reading import save
from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.checkpoints.working_folder import read_parameters
from pyratok_jax.data.heldout import HeldoutClip
from pyratok_jax.errors import UserError
from pyratok_jax.models.pyratok.quantizers.base import Quantizer
from pyratok_jax.models.text_statistics import TextStatistics
from pyratok_jax.nn.lora import LoRAParam
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.reports.training import CALIBRATED, START
from pyratok_jax.tokenizer import DESCRIPTION, load_tokenizer, to_model_range
from pyratok_jax.tokenizer.loading import tokenizer_folder, trained_arrays
from pyratok_jax.training.abstract import abstract_training
from pyratok_jax.training.init import previous_stage
from pyratok_jax.training.init.previous_stage import check_alike, start_from
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.tasks import run as tasks_run
from pyratok_jax.training.tasks.run import first_weights
from pyratok_jax.training.tasks.tokenizer import TokenizerTask
from tests.training.tiny import arrays_equal, tiny_config
from tests.training.worker import Line

DRIFT = {"drift.hidden.kernel", "drift.hidden.bias", "drift.out.kernel", "drift.out.bias"}


@pytest.fixture(scope="module")
def recipe():
    """Shapes of the three stages of the full-size recipe, by name."""
    get_config = runpy.run_path("configs/tpu_v5.py")["get_config"]
    return {
        stage: abstract_training(get_config(stage)).partition
        for stage in ("stage1", "stage2", "stage3")
    }


@pytest.mark.parametrize(
    ("before", "after", "fresh"), [("stage1", "stage2", set()), ("stage2", "stage3", DRIFT)]
)
def test_each_stage_of_the_recipe_starts_from_the_one_before(
    recipe, monkeypatch, before, after, fresh
):
    arrays = dict(recipe[before].trainable)
    arrays |= {n: np.ones(x.shape) for n, x in arrays.items() if ".text_statistics." in n}
    monkeypatch.setattr(previous_stage, "newest_step", lambda folder: 7)
    monkeypatch.setattr(previous_stage, "read_parameters", lambda folder, step: arrays)
    wanted = set(recipe[after].trainable)
    handover = start_from("/mnt/BUCKET/before", recipe[after])
    assert handover.step == 7 and set(handover.fresh) == fresh
    assert set(handover.taken) == wanted - fresh


def test_a_stage_starts_from_the_shipped_tokenizer(tmp_path):
    arrays = trained_arrays(tokenizer_folder("builtin:world"), None)

    class Head(nnx.Module):
        """One kernel that the tokenizer has too, and one of its own."""

        def __init__(self) -> None:
            self.kernel = nnx.Param(jnp.zeros_like(arrays["alignment.head.kernel"]))

    class System(nnx.Module):
        def __init__(self) -> None:
            self.alignment = nnx.Dict(head=Head(), other=Head())

    partition = Partition(System(), lambda name, variable: True)
    handover = start_from("builtin:world", partition)
    assert handover.step is None
    assert handover.taken == ("alignment.head.kernel",)
    assert handover.fresh == ("alignment.other.kernel",)
    assert np.any(arrays["alignment.head.kernel"] != 0)
    assert arrays_equal(
        {"k": partition.trainable["alignment.head.kernel"]}, {"k": arrays["alignment.head.kernel"]}
    )
    with pytest.raises(UserError, match="holds no checkpoint"):
        start_from(str(tmp_path), partition)
    with pytest.raises(UserError, match="no shipped tokenizer"):
        start_from("builtin:moon", partition)


class Levels(nnx.Module):
    """Two levels with a bias each, and one array that belongs to no level."""

    def __init__(self) -> None:
        heads = [nnx.Dict(head=nnx.Dict(bias=nnx.Param(jnp.zeros(16)))) for _ in range(2)]
        self.tokenizer = nnx.Dict(blocks=nnx.List(heads), null_text=nnx.Param(jnp.zeros(576)))


def test_only_the_first_levels_are_taken_where_the_config_says_so():
    partition = Partition(Levels(), lambda name, variable: True)
    parts = ("blocks", "synthesis")
    handover = start_from("builtin:world", partition, levels=1, level_parts=parts)
    assert set(handover.taken) == {"tokenizer.blocks.0.head.bias", "tokenizer.null_text"}
    assert handover.fresh == ("tokenizer.blocks.1.head.bias",)
    assert not np.any(partition.trainable["tokenizer.blocks.1.head.bias"])
    whole = start_from("builtin:world", Partition(Levels(), lambda name, variable: True))
    assert set(whole.taken) == {*handover.taken, *handover.fresh}


@pytest.fixture(scope="module")
def stage2(world, tmp_path_factory):
    """The working folder of a stage without the drift from DINO: its checkpoint of step 0."""
    workdir = tmp_path_factory.mktemp("stage2") / "work"
    config = tiny_config(world, steps=0)
    config.loss.weights.drift_dinov3 = 0.0
    task = TokenizerTask(config)
    train(config, workdir, task)
    task.describe(workdir)
    return workdir


def test_a_stage_with_a_new_head_trains_from_the_one_before(stage2, world, tmp_path, capsys):
    kept = read_parameters(stage2, 0)
    assert not DRIFT & kept.keys()
    task = TokenizerTask(tiny_config(world, init_from=str(stage2)))
    fresh = dict(Partition(task.system, task.is_trainable).trainable)
    trained = train(task.config, tmp_path, task, on_start=lambda p: first_weights(task, p))
    said = " ".join(capsys.readouterr().out.split())
    assert f"started from {stage2}, step 0: {len(kept)} arrays taken over" in said
    names = said.partition("kept as initialised: ")[2]
    assert {name.rstrip(",") for name in names.split()[: len(DRIFT)]} == DRIFT
    # `trained.partition` holds what training began with.
    begun = trained.partition.trainable
    assert arrays_equal({name: begun[name] for name in kept}, kept)
    assert arrays_equal({n: begun[n] for n in DRIFT}, {n: fresh[n] for n in DRIFT})
    assert begun.keys() == kept.keys() | DRIFT and trained.finished
    assert not np.array_equal(
        trained.state.params["drift.hidden.kernel"], fresh["drift.hidden.kernel"]
    )


def test_what_a_stage_takes_over_is_measured_before_its_first_step(
    stage2, world, tmp_path, monkeypatch
):
    """The report then says what the steps of this stage gave."""
    measured = []

    def rebuilt(task, partition, clips):
        measured.append(np.asarray(partition.trainable["tokenizer.null_text"]))
        return {"clip": np.zeros((1, 2, 2, 3), np.uint8)}

    class Stopped(Exception):
        """The training, before its first step."""

    def begin(config, workdir, task, on_start):
        on_start(Partition(task.system, task.is_trainable))
        raise Stopped

    monkeypatch.setattr(tasks_run, "_rebuilt", rebuilt)
    monkeypatch.setattr(tasks_run, "train", begin)
    with pytest.raises(Stopped):
        tasks_run.run(tiny_config(world, init_from=str(stage2), seed=1), tmp_path)
    kept = read_parameters(stage2, 0)["tokenizer.null_text"]
    with np.load(tmp_path / "before.npz") as file:
        assert sorted(file) == sorted(f"{stage}|clip" for stage in (START, CALIBRATED))
    assert not np.array_equal(measured[0], kept) and np.array_equal(measured[1], kept)


def test_arrays_that_mean_something_else_are_refused_whatever_their_shapes(stage2, world):
    task = TokenizerTask(tiny_config(world))
    frozen = task.backbone.sha256, task.language.sha256
    config = task.system.tokenizer.config
    check_alike(str(stage2), *frozen, config)
    with pytest.raises(UserError, match="other weights of the backbone"):
        check_alike(str(stage2), "0" * 64, frozen[1], config)
    with pytest.raises(UserError, match="other weights of the language_model"):
        check_alike(str(stage2), frozen[0], "0" * 64, config)
    for key, value in (("heads", 4), ("lora_alpha", 3.0), ("vocabulary", 60)):
        with pytest.raises(UserError, match=rf"config.model.tokenizer.{key} is {value}"):
            check_alike(str(stage2), *frozen, dataclasses.replace(config, **{key: value}))
    # Without adapters their scale is nobody's.
    check_alike(str(stage2), *frozen, dataclasses.replace(config, lora_rank=0, lora_alpha=3.0))


def test_arrays_without_a_place_in_the_next_stage_are_named(stage2, world, tmp_path, capsys):
    config = tiny_config(world, init_from=str(stage2))
    config.model.tokenizer.lora_rank = 0
    task = TokenizerTask(config)
    first_weights(task, Partition(task.system, task.is_trainable))
    said = " ".join(capsys.readouterr().out.split())
    assert ".adapter." in said.partition("left behind: ")[2]


def test_what_benchmarks_teach_a_stage_further_keeps_its_adapters(stage2, tmp_path):
    """And the videos that they teach it with are seen through them."""
    tokenizer = load_tokenizer(str(stage2))
    arrays = Partition(tokenizer.model, lambda name, variable: isinstance(variable, LoRAParam))
    moved = {name: x + 0.5 for name, x in arrays.trainable.items()}
    model = arrays.merge(moved, arrays.frozen)
    output = tmp_path / "taught"
    system = stored_features.Levels(model, tokenizer.alignment)
    save(str(stage2), output, system, 1)
    said, before = (json.loads((x / DESCRIPTION).read_text()) for x in (output, stage2))
    assert said == before
    taught = load_tokenizer(str(output))
    kept = Partition(taught.model, lambda name, variable: isinstance(variable, LoRAParam))
    assert moved and arrays_equal(kept.trainable, moved)
    video = np.full((1, 5, 32, 32, 3), 90, np.uint8)
    posterior = taught.model.vae.posterior(to_model_range(jnp.asarray(video)))
    wanted = taught.model.vae.normalize(posterior.mean)
    seen = Networks(taught).encode(video)[0]
    np.testing.assert_allclose(seen, wanted, rtol=1e-3, atol=5e-3)
    before = load_tokenizer(str(stage2))
    assert np.abs(Networks(before).encode(video)[0] - seen).max() > 0.05
    assert Networks(before).encoder_hash != Networks(taught).encoder_hash


def test_the_other_levels_are_fitted_under_the_null_caption(world, monkeypatch):
    given = {}
    monkeypatch.setattr(Quantizer, "fit", lambda self, latents, **x: given.update(x) or [])
    task = TokenizerTask(tiny_config(world))
    task.calibrate(Partition(task.system, task.is_trainable), kept=1)
    null = task.system.tokenizer.null_text[...]
    assert given["kept"] == 1 and np.array_equal(given["text"].embeddings[0, 0], null)


def test_what_was_measured_before_of_other_clips_is_left_out(capsys):
    """`report` may change when a training resumes; the report must not fail after its last step."""
    clip = HeldoutClip("a", None, 8.0, np.zeros((1, 2, 2, 3), np.uint8))
    larger = HeldoutClip("a", None, 8.0, np.zeros((1, 4, 4, 3), np.uint8))
    before = {START: {"a": clip.video}}
    assert tasks_run._of_these(before, [clip]) == before and not capsys.readouterr().out
    assert tasks_run._of_these(before, [larger]) == {}
    assert tasks_run._of_these(before, [clip, clip._replace(name="b")]) == {}
    assert "before.npz is of other clips" in capsys.readouterr().out


def test_a_stage_of_another_model_is_refused(stage2, world, tmp_path):
    config = tiny_config(world)
    config.model.tokenizer.width = 8
    task = TokenizerTask(config)
    partition = Partition(task.system, task.is_trainable)
    with pytest.raises(UserError, match="does not fit this config's model at .*same model"):
        start_from(str(stage2), partition)
    with pytest.raises(UserError, match="holds no checkpoint"):
        start_from(str(tmp_path), partition)
    other = Partition(Line(), lambda name, variable: True)
    with pytest.raises(UserError, match="shares no trainable array"):
        start_from(str(stage2), other)


@pytest.mark.parametrize("stored", ["published", "checkpoint"])
def test_the_shipped_statistics_of_captions_outlive_the_first_batch(stored, monkeypatch):
    """They were measured at once, without counting batches; a batch moves them by 1 %."""

    class System(nnx.Module):
        def __init__(self) -> None:
            self.tokenizer = nnx.Dict(text_statistics=TextStatistics(576))

    partition = Partition(System(), lambda name, variable: True)
    if stored == "checkpoint":
        arrays = trained_arrays(tokenizer_folder("builtin:world"), None)
        monkeypatch.setattr(previous_stage, "newest_step", lambda folder: 7)
        monkeypatch.setattr(previous_stage, "read_parameters", lambda folder, step: arrays)
    start_from("builtin:world", partition)
    taken = partition.trainable
    before = taken["tokenizer.text_statistics.mean"]
    assert np.any(before != 0) and taken["tokenizer.text_statistics.batches"] == 100

    statistics = TextStatistics(576)
    for name, value in taken.items():
        getattr(statistics, name.rpartition(".")[2])[...] = value
    text = TextCondition(jnp.ones((2, 3, 576)), jnp.ones((2, 3), bool))
    moved = jax.grad(lambda s: s.tracking(text))(statistics).mean[...]
    np.testing.assert_allclose(moved, 0.01 * (before - 1.0), rtol=1e-5)


def test_a_language_model_of_another_width_is_refused_in_one_line(monkeypatch):
    """The text that levels attend to has then another width than the checkpoint's."""
    partition = Partition(Line(), lambda name, variable: True)
    partition.trainable = {"tokenizer.null_text": np.zeros(24), "alignment.soi": np.zeros(24)}
    other = {"tokenizer.null_text": np.zeros(16), "alignment.soi": np.zeros(16)}
    monkeypatch.setattr(previous_stage, "newest_step", lambda folder: 7)
    monkeypatch.setattr(previous_stage, "read_parameters", lambda folder, step: other)
    with pytest.raises(UserError, match=r"null_text \(shape \(16,\), expected \(24,\)\)") as raised:
        start_from("runs/stage1", partition)
    assert "\n" not in str(raised.value)
