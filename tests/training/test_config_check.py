"""Every value of a config is checked before work begins: one line, exit code 2, no folder."""

import re
import subprocess
import sys

import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.training.config import (
    generator_training_config,
    parse_flags,
    tokenizer_training_config,
)
from pyratok_jax.training.config_check import check_config
from pyratok_jax.training.config_keys import flattened, known_values

SMOKE = "configs/demo.py:smoke"
# Of these the parts of a generator's config make themselves sure.
BY_DATACLASS = ("model.", "objective.", "sampling.")


def demo(**changes):
    words = [f"--config.{key}={value}" for key, value in changes.items()]
    return parse_flags(["train", f"--config={SMOKE}", *words], default_config="")[0]


MISTAKES = [
    ("data.buckets", "('6x64x64',)", "5x64x64|9x64x64 would do"),
    ("data.buckets", "('5x60x60',)", "multiples of 32; 5x64x64 would do"),
    ("data.buckets", "('5x64',)", "not of the form"),
    ("calibration.buckets", "('5x60x60',)", "5x64x64 would do"),
    ("report.buckets", "('wide',)", "not of the form"),
    ("log_every", 0, "a whole number from 1"),
    ("steps", -3, "a whole number from 0"),
    ("batch_size", 0, "a whole number from 1"),
    ("accumulate", 0, "a whole number from 1"),
    ("dtype", "float8", "one of float32, bfloat16, float16"),
    ("model.tokenizer.bits", 99, "a whole number from 1 to 32"),
    ("model.tokenizer.heads", 7, "a divisor"),
    ("model.tokenizer.grids", "hexagon", "one of pyramid"),
    ("model.tokenizer.quantizer", "magic", "one of lapq"),
    ("model.head", "tree", "one of lookup_free, softmax"),
    ("model.backbone", "nowhere", "nowhere does not exist; .* weights_conversion"),
    ("language.spec", "nowhere", "nowhere does not exist; .* weights_conversion"),
    ("language.bits", 5, "one of 0, 4, 8"),
    ("language.remat", "foo", "one of none, dots, layers"),
    ("vision.spec", "nowhere", "nowhere does not exist; .* weights_conversion"),
    ("remat", "foo", "one of none"),
    ("data.fps", -1.0, "a number from 0"),
    ("data.sources", "('/nonexistent',)", "no such source: /nonexistent"),
    ("data.sources", "()", "not empty"),
    ("data.weights", "(1.0, 2.0)", "one for each of the 1 sources"),
    ("data.crop", "left", "one of random, center"),
    ("data.threads", 0, "a whole number from 1"),
    ("loss.weights.lpips", -1.0, "a number from 0"),
    ("loss.weights.l1", "nan", "a number from 0"),
    ("loss.region", "corner", "one of spread, crop"),
    ("loss.targets", "soft", "one of straight_through, fixed"),
    ("loss.settings.text_form", "prose", "one of contrastive, kl"),
    ("masking.frame_ratio", 1.5, "a number from 0 to 1"),
    ("masking.start", 2.0, "a number from 0 to 1"),
    ("optimizer.name", "sgd", "one of adamw"),
    ("optimizer.schedule", "steps", "one of cosine"),
    ("optimizer.warmup", 500, "longer than the 4 steps"),
    ("optimizer.learning_rate", -1e-3, "a number from 0"),
    ("optimizer.groups", "(('(', 2.0),)", "optimizer.groups"),
    ("optimizer.groups", "(('alignment', 'fast'),)", "no pair"),
    ("ema_decay", 1.0, "ema_decay"),
    ("mesh.data", -2, "-1 or a whole number from 1"),
    ("mesh.fsdp", 0, "-1 or a whole number from 1"),
    ("seed", 10**20, "a whole number from 0, at most 2147483647"),
    ("steps", 10**20, "a whole number from 0, at most 2147483647"),
    ("data.zoom", 1e30, "a number from 1 to 16"),
    ("model.vae", "wan9", "one of wan2.1"),
    ("model.tokenizer.vocabulary", 70_000, "from 1 to 65536, the codes of 16 bits"),
    ("language.size", "huge", "one of qwen2.5-vl-3b"),
    ("language.stored", "nowhere", "nowhere holds no index.json .*embed_captions"),
    ("vision.size", "huge", "one of dinov3-vits16"),
    ("checkpoint.keep", -1, "a whole number from 0"),
    ("init_from", "/nonexistent", "/nonexistent does not exist"),
    ("init_levels", 1, "init_from names no tokenizer"),
    ("evaluators", "({'name': 'heldout'},)", "every"),
    ("evaluators", "({'name': 'horoscope', 'every': 5},)", "expected one of heldout"),
]


@pytest.mark.parametrize(
    ("key", "value", "message"), MISTAKES, ids=lambda x: str(x) if isinstance(x, str) else None
)
def test_each_mistake_is_one_line_that_names_its_key(key, value, message):
    config = demo(**{key: value})
    with pytest.raises(UserError, match=message) as refused:
        check_config(config)
    text = str(refused.value)
    assert re.search(rf"\b{re.escape(key)}\b", text) and "\n" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_levels": 4}, "fewer than the 4 levels"),
        ({"init_levels": 2, "calibration.batches": 0}, "would stay at random"),
        ({"init_levels": 1, "model.tokenizer.quantizer": "residual",
          "model.tokenizer.grids": "uniform"}, "share their arrays"),
    ],
)  # fmt: skip
def test_first_levels_are_taken_where_the_others_can_be_fitted(changes, message):
    with pytest.raises(UserError, match=message):
        check_config(demo(init_from="builtin:world", **changes))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.sources", "('films',)", "a prior is trained on tokens alone"),
        ("sampling.steps", "foo", "each a whole number from 1"),
        ("sampling.top_p", "(0.0,)", "each a number above 0 to 1"),
        ("sampling.guidance_schedule", "foo", "one of constant, linear, cosine"),
        ("model.factors", "foo", "each a whole number from 1"),
        ("conditioning.language", "nowhere", "nowhere does not exist; .* weights_conversion"),
        ("conditioning.stored", "nowhere", "nowhere holds no index.json"),
        ("tokens.path", "nowhere", "nowhere"),
        ("tokenizer", "nowhere", "nowhere"),
    ],
)
def test_each_mistake_in_a_config_of_a_prior_is_one_line(key, value, message):
    given = {"tokenizer": "builtin:world", "tokens.path": "docs"}

    def check(**changes):
        words = [f"--config.{name}={one}" for name, one in (given | changes).items()]
        check_config(
            parse_flags(
                ["train", "--config=configs/generator.py:smoke", *words], default_config=""
            )[0]
        )

    check()
    with pytest.raises(UserError, match=message) as refused:
        check(**{key: value})
    assert f"config.{key}" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "config",
    [
        "demo", "demo:compact", "demo:world", "world:stage1", "world:smoke", "world:adapted",
        "demo_backbone", "demo_backbone:decoder", "demo_vision",
    ],
)  # fmt: skip
def test_the_shipped_configs_pass(config):
    file, _, argument = config.partition(":")
    named = f"configs/{file}.py:{argument}" if argument else f"configs/{file}.py"
    check_config(parse_flags(["train", f"--config={named}"], default_config="")[0])


def test_a_later_stage_names_the_one_before():
    """From fresh levels in the middle of the recipe's schedules nothing comes."""
    words = ["train", "--config=configs/world.py:stage3"]
    with pytest.raises(UserError, match=r"config.masking.start is 0.857.* config.init_from names"):
        check_config(parse_flags(words, default_config="")[0])
    check_config(parse_flags([*words, "--config.init_from=builtin:world"], default_config="")[0])


def test_a_task_that_always_begins_afresh_takes_no_start():
    words = ["train", "--config=configs/demo_vision.py", "--config.init_from=docs"]
    with pytest.raises(UserError, match="config.init_from: .* 'vision' always begins afresh"):
        check_config(parse_flags(words, default_config="")[0])


def test_every_key_has_values_and_a_meaning():
    """A new key needs its row: without one a wrong value would be found in the middle of a run."""
    for config in (tokenizer_training_config(), generator_training_config()):
        missing = [
            key
            for key, _ in flattened(config)
            if known_values(config.task, key) is None
            and not (config.task == "generator" and key.startswith((*BY_DATACLASS, "data.")))
        ]
        assert missing == []


def test_nothing_is_computed_before_the_hosts_are_joined():
    """`jax.distributed.initialize` and XLA's flags come before the first use of a device."""
    code = (
        "from pyratok_jax.training.config import parse_flags\n"
        "from pyratok_jax.training.config_check import check_config\n"
        f"check_config(parse_flags(['t', '--config={SMOKE}'], default_config='')[0])\n"
        "import jax\n"
        "jax.distributed.initialize('localhost:39481', 1, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def test_a_refused_start_leaves_no_folder(tmp_path):
    workdir = tmp_path / "run"
    words = [f"--config={SMOKE}", f"--workdir={workdir}", "--config.data.buckets=('6x64x64',)"]
    done = subprocess.run(
        [sys.executable, "-m", "pyratok_jax.train", *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and "config.data.buckets: 6x64x64" in lines[0]
    assert "Traceback" not in done.stderr and not workdir.exists()
