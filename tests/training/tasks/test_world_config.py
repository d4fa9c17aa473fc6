"""The world's recipe: stages that follow one another, refusals of settings that cannot teach."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.errors import UserError
from pyratok_jax.models.text_statistics import plain_captions
from pyratok_jax.tokenizer.loading import read_description, stored_config, tokenizer_folder
from pyratok_jax.training.system import TokenizerLoss, tokenizer_config

CONFIGS = Path(__file__).parents[3] / "configs"
make, tpu, demo = (
    runpy.run_path(str(CONFIGS / name))["get_config"]
    for name in ("world.py", "tpu_v5.py", "demo.py")
)


def test_stages_share_one_schedule_of_masking_and_turn_the_losses_on():
    stages = [make(f"stage{n}") for n in (1, 2, 3)]
    assert stages[0].masking.start == 0 and stages[2].masking.end == 1
    for before, after in zip(stages[:-1], stages[1:], strict=True):
        assert before.masking.end == after.masking.start
        assert before.model.tokenizer == after.model.tokenizer
    assert [s.loss.weights.autoregressive > 0 for s in stages] == [False, True, True]
    assert [s.loss.weights.drift_dinov3 > 0 for s in stages] == [False, False, True]
    assert all(TokenizerLoss(s).uses("text_codebook") for s in stages)
    known = "stage1, stage2, stage3, ablation, adapted, continued, smoke"
    with pytest.raises(ValueError, match=known):
        make("stage4")


@pytest.mark.parametrize("argument", ["adapted", "continued"])
def test_adapters_are_trained_around_the_levels_that_are_shipped(argument):
    config = make(argument)
    shipped = stored_config(read_description(tokenizer_folder(config.init_from)), "builtin:world")
    made = tokenizer_config(config, shipped.vae, shipped.text_width)
    assert made.lora_rank > 0
    alike = {"lora_rank": shipped.lora_rank, "lora_alpha": shipped.lora_alpha}
    assert dataclasses.replace(made, **alike) == shipped


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("batch_size", 1, "config.batch_size: 1 clips in 1 parts .* no negatives"),
        ("accumulate", 16, "in 16 parts"),
        ("data.buckets", ("9x64x64", "17x64x64*1"), "17x64x64.1 has one clip .* no negatives"),
        ("loss.preset", "eq2", "expected one of"),
        ("loss.hidden_captions", 1.5, "hidden_captions is 1.5"),
        ("loss.formulas", "eq2", "expected one of"),
        ("loss.settings.text_levels", (1.0,) * 5, "text_levels .* has 4 levels"),
        ("loss.settings.text_levels", (0.0,), "text_levels .* not all 0"),
        ("model.head", "softmax", "needs config.model.head=lookup_free"),
    ],
)
def test_settings_that_cannot_teach_are_refused_in_one_line(key, value, message):
    config = make("stage2")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message) as raised:
        TokenizerLoss(config)
    assert "\n" not in str(raised.value)


def test_the_recipe_and_the_world_have_the_inputs_that_are_proven():
    """Where the residual is in every level's logits, text and features move nothing."""
    for config in (tpu("stage1"), tpu("stage3-v5e"), make("stage1"), make("stage3")):
        assert config.model.tokenizer.inputs == "latent-first"
        assert config.model.tokenizer.surrogate == "tanh"
        assert config.loss.hidden_captions == 0.9
        assert config.loss.settings.text_pooling == "peaks"
        assert config.loss.settings.text_levels == (1.0, 0.02, 0.02, 0.1)
    # The demo of real scenes alone has no words.
    fine = demo("fine")
    assert fine.model.tokenizer.inputs == "residual-everywhere"


def test_a_part_of_a_batch_with_one_clip_is_refused_where_it_is_traced():
    """How many parts there are is the mesh's business: `17x64x64*2` may be cut in two."""
    loss = TokenizerLoss(make("stage1"))
    batch = {"video": jnp.zeros((1, 1, 8, 8, 3), jnp.uint8)}
    with pytest.raises(UserError, match="one clip, and so the contrastive text term"):
        loss(None, batch, jax.random.key(0), jnp.float32(0))


def test_levels_do_not_see_hidden_captions_but_the_losses_do(monkeypatch):
    """A level that sees the caption which its codes are compared with would copy it."""
    clips, words = 64, 3
    config = make("stage1")
    config.loss.hidden_captions = 0.75
    config.masking.update({"frame_ratio": 0.0, "spatial_ratio": 0.0})
    mask = jnp.ones((clips, words), bool).at[0].set(False)
    batch = {
        "video": jnp.zeros((clips, 1, 8, 8, 3), jnp.uint8),
        "text_ids": jnp.zeros((clips, words), jnp.int32),
        "text_mask": mask,
        "text_embeddings": jnp.ones((clips, words, 4)),
    }
    seen = {}

    def encode(video, text, key):
        seen["levels"] = text.mask
        return SimpleNamespace(latent=video, levels=())

    def objective(weights, video, rebuilt, output, *, text, shown, **others):
        seen["losses"], seen["shown"] = text.mask, shown
        raise InterruptedError

    tokenizer = SimpleNamespace(
        encode=encode, decode=lambda z: z, captions=lambda text: text, quantizer=None,
        mask_value=jnp.zeros(3),
    )  # fmt: skip
    alignment = SimpleNamespace(text_embed=None, temperature=0.07)
    system = SimpleNamespace(tokenizer=tokenizer, alignment=alignment, lpips=None, drift=None)
    monkeypatch.setattr("pyratok_jax.training.system.objective", objective)
    monkeypatch.setattr(TokenizerLoss, "_frozen_posterior", lambda *args: None)
    with pytest.raises(InterruptedError):
        TokenizerLoss(config)(system, batch, jax.random.key(0), jnp.zeros(()))
    np.testing.assert_array_equal(seen["losses"], mask)
    visible = seen["levels"].any(axis=1)
    np.testing.assert_array_equal(seen["shown"], visible)
    assert 4 <= visible.sum() <= 32 and not visible[0]
    np.testing.assert_array_equal(seen["levels"][visible], mask[visible])


def test_the_paper_s_preset_puts_ones_inside_eq_2():
    config = make("stage2")
    config.loss.preset = "paper"
    assert TokenizerLoss(config).weights.text == 1.0


def test_the_autoregressive_loss_is_told_captions_that_are_hidden_from_the_levels(monkeypatch):
    config = make("stage2")
    config.loss.hidden_captions = 1.0
    mask = jnp.ones((3, 2), bool).at[0].set(False)
    words = jax.random.normal(jax.random.key(0), (3, 2, 4))
    batch = {
        "video": jnp.zeros((3, 1, 8, 8, 3), jnp.uint8),
        "text_ids": jnp.zeros((3, 2), jnp.int32),
        "text_mask": mask,
        "text_embeddings": words,
    }
    told = {}

    def autoregressive_loss(*args, pooled, **others):
        told["pooled"] = pooled
        raise InterruptedError

    tokenizer = SimpleNamespace(
        encode=lambda video, text, key: SimpleNamespace(latent=video, levels=()),
        decode=lambda z: z, captions=plain_captions, mask_value=jnp.zeros(3),
    )  # fmt: skip
    text = SimpleNamespace(language_model=None)
    system = SimpleNamespace(tokenizer=tokenizer, alignment=None, text=text)
    monkeypatch.setattr("pyratok_jax.training.system.autoregressive_loss", autoregressive_loss)
    with pytest.raises(InterruptedError):
        TokenizerLoss(config)(system, batch, jax.random.key(0), jnp.zeros(()))
    np.testing.assert_allclose(told["pooled"][1:], words[1:].mean(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(told["pooled"][0], jnp.zeros(4))
