"""Configs of the demo's own networks: their own keys are checked too."""

import pytest

from pyratok_jax.demo.config_check import check_demo_config
from pyratok_jax.errors import UserError
from pyratok_jax.training.config import parse_flags
from pyratok_jax.training.config_check import check_config


def check(config, **changes):
    words = [f"--config.{key}={value}" for key, value in changes.items()]
    words = ["train", f"--config=configs/{config}.py:smoke", *words]
    made = parse_flags(words, default_config="")[0]
    check_config(made)
    check_demo_config(made)


@pytest.mark.parametrize(
    ("config", "key", "value", "message"),
    [
        ("demo_backbone", "data.phases", "('2x17x64',)", "STEPS.BATCHxFRAMESxSIZE"),
        ("demo_backbone", "data.clips.film", -1, "a number from 0"),
        ("demo_backbone", "data.augment.colour", "nan", "a number from 0"),
        ("demo_backbone", "loss.mse", -1.0, "a number from 0"),
        ("demo_backbone", "remat", "foo", "one of none"),
        ("demo_backbone", "model.num_res_blocks", 0, "sizes must be from 1"),
        ("demo_vision", "model.width", 7, "each of 4 heads a multiple of 4"),
        ("demo_vision", "data.phases", "()", "config.data.phases is empty"),
    ],
)
def test_each_mistake_is_one_line_that_names_its_key(config, key, value, message):
    check(config)
    with pytest.raises(UserError, match=message) as refused:
        check(config, **{key: value})
    assert f"config.{key.split('.')[0]}" in str(refused.value)
    assert "\n" not in str(refused.value)
