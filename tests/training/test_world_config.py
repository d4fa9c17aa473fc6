"""The world's recipe: stages that follow one another, refusals of settings that cannot teach."""

import runpy
from pathlib import Path

import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.training.system import TokenizerLoss

make = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "world.py"))["get_config"]


def test_stages_share_one_schedule_of_masking_and_turn_the_losses_on():
    stages = [make(f"stage{n}") for n in (1, 2, 3)]
    assert stages[0].masking.start == 0 and stages[2].masking.end == 1
    for before, after in zip(stages[:-1], stages[1:], strict=True):
        assert before.masking.end == after.masking.start
        assert before.model.tokenizer == after.model.tokenizer
    assert [s.loss.weights.autoregressive > 0 for s in stages] == [False, True, True]
    assert [s.loss.weights.drift_dinov3 > 0 for s in stages] == [False, False, True]
    assert all(TokenizerLoss(s).uses("text_codebook") for s in stages)
    with pytest.raises(ValueError, match="stage1, stage2, stage3, smoke"):
        make("stage4")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("batch_size", 1, "no negatives in a batch of 1"),
        ("accumulate", 8, "in 8 parts"),
        ("loss.preset", "eq2", "expected one of"),
        ("model.head", "softmax", "needs config.model.head=lookup_free"),
    ],
)
def test_settings_that_cannot_teach_are_refused_in_one_line(key, value, message):
    config = make("stage2")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message) as raised:
        TokenizerLoss(config)
    assert "\n" not in str(raised.value)


def test_the_paper_s_preset_puts_ones_inside_eq_2():
    config = make("stage2")
    config.loss.preset = "paper"
    assert TokenizerLoss(config).weights.text == 1.0
