"""Ablations: each is a config that builds, two are run, tables against hand-computed figures."""

import csv
import errno
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.world import ablations as stored
from pyratok_jax import ablate
from pyratok_jax.data.buckets import Bucket
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.task import BrokenItemError
from pyratok_jax.io.atomic import write_json
from pyratok_jax.models.dino import Dino
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.models.sizes import VAES
from pyratok_jax.models.wan_vae.config import tiny
from pyratok_jax.nn.grids import grid_shape
from pyratok_jax.reports.ablation import markdown, summarise
from pyratok_jax.tokenizer import load_tokenizer
from pyratok_jax.training.ablations import run
from pyratok_jax.training.ablations.run import keep_start, run_one, start_key, take_start
from pyratok_jax.training.ablations.table import ABLATIONS, apply
from pyratok_jax.training.abstract import abstract_batch
from pyratok_jax.training.config import parse_flags, tokenizer_training_config
from pyratok_jax.training.system import TokenizerLoss, build_system, tokenizer_config
from tests.training.tiny import DINO, LANGUAGE

RATES = {"full", "single_lfq", "no_pyramid", "residual", "rvq", "blocks_2", "blocks_3"}


def _config(name):
    config = apply(tokenizer_training_config(batch_size=2), name, ABLATIONS[name].scales[0])
    config.model.tokenizer.update({"width": 8, "heads": 2, "synthesis_width": 4, "lora_rank": 2})
    config.language.length = 4
    config.loss.weights.lpips = 0.0
    return config


@pytest.mark.parametrize("name", [n for n in ABLATIONS if n.startswith("vae_")])
def test_every_backbone_takes_the_clips_and_grids_of_its_ablation(name):
    config, _ = parse_flags(
        ["x", f"--config=configs/ablations.py:{name},full"],
        default_config="configs/ablations.py",
    )
    vae = VAES[config.model.vae]
    sizes = tokenizer_config(config, vae, 16)
    for bucket in config.data.buckets:
        t, h, w = map(int, bucket.split("*")[0].split("@")[0].split("x"))
        vae.check_clip(t, h, w)
        tokens = sum(math.prod(grid_shape(grid, t, h, w)) for grid in sizes.grids)
        assert 0.05 < tokens * sizes.bits / (t * h * w) < 0.15


@pytest.mark.parametrize("name", [n for n, one in ABLATIONS.items() if "full" in one.scales])
def test_every_ablation_of_the_recipe_has_a_loss(name):
    """Fewer levels than the base's, too."""
    flags = ["x", f"--config=configs/ablations.py:{name},full"]
    config, _ = parse_flags(flags, default_config="configs/ablations.py")
    loss = TokenizerLoss(config)
    if config.loss.preset == "paper" or config.loss.formulas == "paper":
        assert loss.settings.text_levels == (1.0,)


def test_levels_that_have_diverged_keep_a_run_s_other_figures(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise BrokenItemError("not finite")

    monkeypatch.setattr(run, "check_language", broken)
    monkeypatch.setattr(run, "world_videos", lambda *_: tmp_path)
    monkeypatch.setattr(run, "zero_shot", lambda *_: {"questions": None})
    makes = SimpleNamespace(quantizer=SimpleNamespace(makes_tokens=True))
    partition = SimpleNamespace(
        trainable={}, frozen={}, merge=lambda *_: SimpleNamespace(tokenizer=makes)
    )
    task = SimpleNamespace(
        wrap=lambda system: SimpleNamespace(text=object(), alignment=object()),
        config=SimpleNamespace(report=SimpleNamespace(world=12, tasks=1)),
        predicts_codes=False,
        loss=SimpleNamespace(language_layers=None),
    )
    assert run.words_in_tokens(task, partition, tmp_path) == {"questions": None}


@pytest.mark.parametrize("name", [n for n, one in ABLATIONS.items() if "demo" in one.scales])
def test_every_demo_ablation_is_a_config(name):
    config, _ = parse_flags(
        ["x", f"--config=configs/ablations.py:{name}"], default_config="configs/ablations.py"
    )
    base, _ = parse_flags(["x", "--config=configs/demo.py:pyramid"], default_config="")
    changed = {k for k in config.to_dict() if config[k] != base[k]}
    assert bool(changed) == (name != "full")
    sizes = tokenizer_config(config, tiny(), 16)
    tokens = sum(t * h * w for t, h, w in (grid_shape(g, 17, 128, 128) for g in sizes.grids))
    if name in RATES:
        assert tokens * sizes.bits / (17 * 128 * 128) == pytest.approx(0.1406, rel=0.05)


@pytest.mark.parametrize("name", ["continuous", "single_lfq", "rvq", "no_text", "blocks_2"])
def test_losses_of_other_shapes_of_the_method(name):
    """Traced, not computed."""
    config = _config(name)
    loss = TokenizerLoss(config)

    def run(batch):
        rngs = nnx.Rngs(0)
        language = LanguageModel(LANGUAGE, rngs=rngs)
        dino = Dino(DINO, rngs=rngs)
        system = build_system(config, tiny(base_dim=4), language, rngs=rngs, dino=dino)
        return loss(system, batch, jax.random.key(0), jnp.float32(0.5))

    total, terms = jax.eval_shape(run, abstract_batch(config, Bucket(5, 32, 32)))
    assert total.shape == ()
    off = {key.split(".")[-1] for key, value in ABLATIONS[name].changes.items() if value == 0.0}
    assert not off & terms.keys() and "l1" in terms


@pytest.fixture
def config_file(world, tmp_path):
    """The tiny world's config under every ablation."""
    path = tmp_path / "tiny_ablations.py"
    path.write_text(
        "from pathlib import Path\n"
        "from pyratok_jax.training.ablations.table import apply\n"
        "from tests.training.tiny import tiny_config\n"
        "def get_config(argument):\n"
        f"    config = tiny_config(Path({str(world)!r}), steps=2)\n"
        "    return apply(config, *argument.split(','))\n"
    )
    return path


def test_a_set_is_run_once_and_tabulated(config_file, tmp_path, capsys):
    workdir = tmp_path / "runs"
    arguments = ["--names", "rvq,continuous", "--seeds", "1", "--config", str(config_file)]
    arguments += ["--workdir", str(workdir), "--set", "calibration.steps=1"]
    arguments += ["--set", "report.world=12", "--set", "report.tasks=1"]
    assert ablate.main(arguments) == 0
    results = {n: json.loads((workdir / n / "seed_0/result.json").read_text())
               for n in ("rvq", "continuous")}  # fmt: skip
    # 3 levels on the latent's grid, 5x32x32: 2 x 4 x 4 tokens each, 10 bits.
    assert results["rvq"]["bpp"] == pytest.approx(3 * 32 * 10 / (5 * 32 * 32))
    assert "bpp" not in results["continuous"] and results["continuous"]["psnr"] > 0
    # A language model and an embedding of codes: what the tokens name is measured.
    assert 0 <= results["rvq"]["names"] <= 100 and results["rvq"]["names_chance"] == 8.3
    assert "names" not in results["continuous"]
    # Of the tasks on videos that the runs share.
    for figure in ("segmentation_j", "localization_map", "questions"):
        assert 0 <= results["rvq"][figure] <= 100 and figure not in results["continuous"]
    assert [p.name for p in (workdir / "videos").iterdir()] == ["set_5_1"]
    table = (workdir / "ablations.md").read_text()
    assert all(what in table for what in ("named rightly", "segmentation, J", "questions, %"))
    opened = load_tokenizer(workdir / "rvq/seed_0")
    assert len(opened.encode(np.zeros((5, 32, 32, 3), np.uint8), "").ids) == 3
    assert len(list((workdir / "starts").glob("*.npz"))) == 2
    rows = list(csv.DictReader((workdir / "ablations.csv").open()))
    assert [row["name"] for row in rows] == ["rvq", "continuous"]
    assert (workdir / "ablations.png").read_bytes().startswith(b"\x89PNG")
    stamp = (workdir / "rvq/seed_0/result.json").stat().st_mtime_ns
    assert ablate.main(arguments) == 0
    assert (workdir / "rvq/seed_0/result.json").stat().st_mtime_ns == stamp
    # What was measured before the first step is not lost with the process that measured it.
    (workdir / "rvq/seed_0/result.json").unlink()
    assert ablate.main(arguments) == 0
    again = json.loads((workdir / "rvq/seed_0/result.json").read_text())
    assert again["psnr_before_step_1"] == results["rvq"]["psnr_before_step_1"]
    assert again["psnr"] == pytest.approx(results["rvq"]["psnr"])
    with pytest.raises(UserError, match="no run succeeded"):
        ablate.main([*arguments, "--set", "steps=3"])
    assert "other settings" in capsys.readouterr().out.replace("\n", " ")


def test_runs_of_the_same_model_and_seed_begin_alike():
    """Another loss, the same start; another seed or model, another start."""
    keys = []
    for name, seed in (("full", 0), ("no_ssim", 0), ("full", 1), ("no_text", 0)):
        config = _config(name)
        config.seed = seed
        keys.append(start_key(config))
    assert keys[0] == keys[1] and len(set(keys)) == 3
    # Other weights behind the same name are another start.
    assert start_key(config, "a", "b") == start_key(config, "a", "b") != start_key(config, "c", "b")


def test_a_kept_start_is_that_of_the_tokenizer_alone(tmp_path):
    class Arrays:
        def __init__(self, value):
            self.trainable = {"tokenizer.a": np.full(3, value), "drift.b": np.full(2, value)}

    made, other = Arrays(1.5), Arrays(7.0)
    keep_start(made, 21.25, tmp_path / "starts" / "x.npz")
    assert take_start(other, tmp_path / "starts" / "x.npz") == 21.25
    np.testing.assert_array_equal(other.trainable["tokenizer.a"], made.trainable["tokenizer.a"])
    np.testing.assert_array_equal(other.trainable["drift.b"], np.full(2, 7.0))


@pytest.mark.parametrize("name", [n for n, one in ABLATIONS.items() if "world" in one.scales])
def test_every_ablation_on_the_world_is_a_config(name):
    config, _ = parse_flags(
        ["x", f"--config=configs/ablations.py:{name},world"], default_config="configs/ablations.py"
    )
    sizes = tokenizer_config(config, VAES["demo"], 16)
    # Levels of LaPQ read the latent, which comes after the last stage.
    last = len(sizes.vae.stage_strides)
    assert {*sizes.level_stages} <= {last, last + 1} and config.report.world
    tokens = sum(t * h * w for t, h, w in (grid_shape(g, 9, 64, 64) for g in sizes.grids))
    if name in RATES:
        assert tokens * sizes.bits / (9 * 64 * 64) == pytest.approx(0.130, rel=0.05)


def test_what_was_measured_of_the_words_has_columns_even_where_it_is_nothing():
    (row,) = summarise({"full": [_run(0, 20.0, **{"names": 0.0, "nats/gain/level_1": 0.25})]})
    assert "| 0.0 | 0.250 |" in markdown([row])
    assert "caption" not in markdown(summarise({"full": [_run(0, 20.0)]}))


def finished(options, name, folder):
    """A result of an earlier call, without a training."""
    config = ablate._config(options, name, 0)
    write_json(folder / "config.json", json.loads(config.to_json_best_effort()))
    write_json(folder / "result.json", ablate._facts(options, config, name, 0) | {"psnr": 20.0})
    return folder


def test_results_of_another_config_are_refused_by_the_key(config_file, tmp_path):
    options = ablate.parse(["--config", str(config_file)])
    folder = finished(options, "no_ssim", tmp_path / "no_ssim")

    def again(edit=""):
        config_file.write_text(written.replace("    return apply", f"    {edit}\n    return apply"))
        config = ablate._config(options, "no_ssim", 0)
        facts = ablate._facts(options, config, "no_ssim", 0)
        return run_one(config, folder, starts=tmp_path / "starts", facts=facts)

    written = config_file.read_text()
    for edit in ("", "config.log_every = 7", "config.data.threads = 3"):
        assert again(edit)["psnr"] == 20.0
    for key, value in (
        ("optimizer.learning_rate", 0.5), ("report.clips", 3), ("calibration.steps", 9),
        ("loss.weights.l1", 0.125),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"other settings \(config, config.{key}\)"):
            again(f"config.{key} = {value}")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"other settings \(config\); name another"):
        again("config.optimizer.learning_rate = 0.5")
    # Of a version that did not note the config.
    write_json(folder / "result.json", {"name": "no_ssim", "psnr": 20.0})
    with pytest.raises(UserError, match="other settings"):
        again()
    (folder / "result.json").write_text("{")
    with pytest.raises(UserError, match=f"remove the folder {folder} to run"):
        again()


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        ("full,no_ssim", "loss.weights.ssim=0.5", "loss.weights.ssim is what the ablation no_ssim"),
        ("no_ssim", "loss.weights={}", "loss.weights is what the ablation no_ssim"),
        ("rvq", "model.tokenizer.grids[0]=(4,8)", "model.tokenizer.grids is what the ablation rvq"),
        ("uniform", "model.tokenizer.grids.x=1", "what the ablation uniform changes"),
        ("full", "seed=7", "--set seed=7: .*give --seeds"),
    ],
)
def test_a_set_of_what_a_row_changes_is_refused(names, change, message, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_one", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(UserError, match=message) as caught:
        ablate.main(["--names", names, "--set", change, "--workdir", str(tmp_path / "w")])
    assert "\n" not in str(caught.value) and not (tmp_path / "w").exists()


def test_other_keys_may_be_set_in_every_run():
    kept = ["data.buckets=('5x64x64',)", "steps=5", "optimizer.learning_rate=1e-4",
            "calibration.steps=1", "loss.weights.l1=2.0"]  # fmt: skip
    options = ablate.parse([f"--set={change}" for change in kept])
    ablate._check_changes(options, list(ablate.DEFAULT_NAMES))


def test_a_run_that_fails_does_not_stop_the_others(config_file, tmp_path, monkeypatch, capsys):
    figures = {"psnr": 20.0, "ssim": 0.5, "bpp": 0.1, "seconds": 1.0}

    def fail(config, folder, *, starts, facts):
        if facts["name"] == "no_ssim":
            raise ValueError("shapes (3,)\nand (4,) differ")
        if facts["name"] == "no_text":
            raise OSError(errno.ENOSPC, "No space left on device", "x")
        if facts["name"] == "rvq":
            raise KeyboardInterrupt
        return facts | figures

    monkeypatch.setattr(run, "run_one", fail)
    base = ["--seeds", "1", "--config", str(config_file), "--workdir", str(tmp_path)]
    assert ablate.main([*base, "--names", "no_ssim,no_text,full"]) == 1
    said = capsys.readouterr().out
    assert "failed: ValueError: shapes (3,) and (4,) differ" in said
    assert "failed: the disk is full (x)" in said
    assert "full method" in (tmp_path / "ablations.md").read_text()
    with pytest.raises(KeyboardInterrupt):
        ablate.main([*base, "--names", "rvq"])


def test_unknown_names_and_scales_are_refused():
    with pytest.raises(UserError, match="no_such"):
        ablate.main(["--names", "no_such"])
    with pytest.raises(UserError, match="leave the : out"):
        ablate.main(["--config", "ablations:no_text"])
    with pytest.raises(UserError, match="there is no config.stepss"):
        ablate.main(["--set", "stepss=3"])
    with pytest.raises(UserError, match="no such file"):
        ablate.main(["--config", "nowhere.py"])
    with pytest.raises(UserError, match="scale full"):
        ablate.main(["--names", "vae_wan22"])


def _run(seed, psnr, **more):
    shared = {"group": "g", "label": "l", "bpp": 0.1, "published": [None, 33.5]}
    return shared | {"seed": seed, "psnr": psnr, "ssim": 0.5, "lpips": 0.25} | more


def test_summary_of_known_figures():
    results = {
        "full": [_run(0, 20.0), _run(1, 22.0)],
        "less": [_run(1, 21.5, psnr_before_step_1=20.0), _run(2, 23.5, psnr_before_step_1=21.0)],
    }
    full, less = summarise(results)
    assert (full["psnr"], full["seeds"], full["versus_full"]) == (21.0, 2, 0.0)
    assert full["psnr_std"] == pytest.approx(2**0.5)
    # Only seed 1 has a partner: 21.5 - 22.
    assert less["versus_full"] == pytest.approx(-0.5)
    assert (less["start"], full["start"]) == (20.5, None)
    assert "| 20.50 | 22.50 ± 1.41 | -0.50 |" in markdown([less]) and "- / 33.50" in markdown(
        [less]
    )


def test_rows_on_stored_features_have_equal_rates_and_a_control():
    options = stored.parser()
    options.set_defaults(levels=(1.0,), grids=stored.PYRAMID)
    base = stored.base_settings(options.parse_args([]))
    full = stored.bits_per_pixel(base)
    assert full == pytest.approx(300 * 16 / (9 * 64 * 64))
    for name, row in stored.ROWS.items():
        settings = stored.changed(base, row.changes)
        rate = stored.bits_per_pixel(settings)
        assert row.own_rate or rate == pytest.approx(full, rel=0.05), name
        assert sum(settings.levels) == pytest.approx(4.0), name
        assert (row.variant == "off") == (settings.weight == 0), name
    assert [row.variant for row in stored.ROWS.values()].count("shuffled") == 1
