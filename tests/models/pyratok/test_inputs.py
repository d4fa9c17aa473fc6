"""Inputs of a level: what is named matters, what is not cannot; presets, calibration, old files."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.inputs import INPUT_PRESETS, LevelInputs, level_inputs
from pyratok_jax.models.pyratok.lapq import LaPQBlock, LateralConnection, LevelSizes
from pyratok_jax.models.pyratok.quantizers.base import build_quantizer
from pyratok_jax.models.pyratok.quantizers.lapq import LaPQ, LaPQConfig
from pyratok_jax.nn.grids import group_time, space_to_depth
from pyratok_jax.nn.stream_cache import StreamCache
from pyratok_jax.nn.text_attention import TextCondition
from tests.tiny_tokenizer import tiny_config

ARGUMENTS = ("feature", "residual", "previous", "text")


def noise(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def words(seed):
    return TextCondition(noise(seed, 2, 3, 12), jnp.ones((2, 3), bool))


@functools.cache
def block(inputs: LevelInputs) -> LaPQBlock:
    """Of stride (2, 16) on a stage of (1, 8) and a latent of (4, 8); its text path is open."""
    sizes = LevelSizes(
        stage_channels=3, stage_stride=(1, 8), stride=(2, 16), latent_stride=(4, 8),
        latent_channels=4, bits=6, vocabulary=None, surrogate="identity", width=8,
        heads=2, text_width=12, inputs=inputs, normalize=True, has_previous=True,
    )  # fmt: skip
    made = LaPQBlock(sizes, rngs=nnx.Rngs(0))
    if made.attention is not None:
        made.attention.out.kernel[...] = noise(9, 8, 8)
    return made


def given(seed):
    """Clips of 5 frames of 16 x 16."""
    return {
        "feature": noise(seed, 2, 5, 2, 2, 3),
        "residual": noise(seed + 1, 2, 2, 2, 2, 4),
        "previous": jnp.sign(noise(seed + 2, 2, 5, 1, 1, 6)),
        "text": words(seed + 3),
    }


@pytest.mark.parametrize(
    "inputs",
    [
        *dict.fromkeys(level for preset in INPUT_PRESETS.values() for level in preset),
        LevelInputs(feature=False, residual="trunk"),
        LevelInputs(text=False),
        LevelInputs(previous=False, residual="bypass"),
    ],
    ids=str,
)
def test_another_clips_input_changes_the_logits_iff_the_level_names_it(inputs):
    run = nnx.jit(lambda block, given: block(*(given[name] for name in ARGUMENTS)).z)
    own, other = given(10), given(20)
    z = run(block(inputs), own)
    for name in ARGUMENTS:
        changed = run(block(inputs), own | {name: other[name]})
        named = inputs.residual != "none" if name == "residual" else getattr(inputs, name)
        assert bool(np.any(np.asarray(changed) != np.asarray(z))) == named, name


def test_presets_are_what_their_names_say():
    paper = level_inputs("paper", 4)
    assert all(x == LevelInputs(True, True, True, "none") for x in paper)
    assert {x.residual for x in level_inputs("residual-everywhere", 4)} == {"bypass"}
    fine = level_inputs("residual-fine", 4)
    assert [x.residual for x in fine] == ["none", "none", "trunk", "trunk"]
    dropped = level_inputs("residual-dropped", 4)
    assert [x.residual_dropout for x in dropped] == [0.5, 0.5, 0.0, 0.0]
    assert {x.residual for x in dropped} == {"trunk"}
    assert [x.residual for x in level_inputs("residual-fine", 3)] == ["none", "trunk", "trunk"]


@pytest.mark.parametrize(
    "inputs, message",
    [
        ("residue", "'residue' is not one of paper, residual-everywhere"),
        ([{}], "4 levels need as many inputs, not 1"),
        ([{"colour": True}] * 4, "unknown keys in a level's inputs"),
        ([{"feature": False}] * 4, "the feature, the residual or both"),
        ([{"residual": "all"}] * 4, "not one of none, trunk, bypass"),
        ([{"residual_dropout": 2.0}] * 4, "not in"),
    ],
)
def test_impossible_inputs_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        level_inputs(inputs, 4)


def test_the_configuration_keeps_its_inputs_and_older_files_have_the_former_ones():
    config = tiny_config(inputs="residual-fine")
    assert PyraTokConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert '"inputs"' in config.fingerprint()
    former = tiny_config(inputs="residual-everywhere", surrogate="identity")
    values = former.to_dict()
    del values["inputs"], values["surrogate"]
    older = PyraTokConfig.from_dict(values)
    assert older == former
    # The hash of an older checkpoint, to which its tokens belong, does not change.
    values["vae"].pop("family", None)
    assert json.loads(older.fingerprint()) == json.loads(json.dumps(values))


@functools.cache
def clips() -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Latents, and stage features that are linear in them: 13 frames of 32 x 32, 4x8x8."""
    coarse = jnp.repeat(jnp.repeat(noise(0, 6, 4, 2, 2, 4), 2, 2), 2, 3)
    latent = coarse + 0.3 * noise(1, 6, 4, 4, 4, 4)
    config, stages = tiny_config(), []
    vae = config.vae
    parts = zip(vae.stage_channels, vae.stage_strides, strict=True)
    for number, (channels, (dt, ds)) in enumerate(parts):
        x = latent @ noise(2 + number, 4, channels)
        rest = jnp.repeat(x[:, 1:], 4 // dt, axis=1)
        x = jnp.concatenate([x[:, :1], rest], axis=1)
        stages.append(np.asarray(jnp.repeat(jnp.repeat(x, 8 // ds, 2), 8 // ds, 3)))
    return np.asarray(latent), tuple(stages)


@pytest.mark.parametrize("preset", list(INPUT_PRESETS))
def test_calibration_leaves_less_after_each_level(preset):
    latent, stages = clips()
    quantizer = build_quantizer(tiny_config(inputs=preset, bits=8), rngs=nnx.Rngs(0))
    left = quantizer.fit([latent], stages=[stages], steps=20)
    assert np.all(np.isfinite(left)) and left[0] < 0.8
    assert all(a > b for a, b in zip(left, left[1:], strict=False))
    # Nothing but the head's small share in a bypass differs from what the forward pass does.
    synthesised = nnx.jit(lambda q, stages, x: q(stages, x, None)[1])(quantizer, stages, latent)
    error = float(np.mean((synthesised - latent) ** 2) / np.mean(latent**2))
    assert error == pytest.approx(left[-1], abs=1e-5 if preset == "paper" else 0.1)


def test_levels_without_a_bypass_cannot_be_fitted_to_latents_alone():
    quantizer = build_quantizer(tiny_config(inputs="paper"), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="encoder's stages"):
        quantizer.fit([clips()[0]], steps=0)


def test_the_residual_is_dropped_from_whole_clips_in_training_alone():
    latent, stages = clips()
    quantizer = build_quantizer(tiny_config(inputs="residual-dropped"), rngs=nnx.Rngs(0))
    given = tuple(jnp.asarray(stage) for stage in stages)
    run = nnx.jit(lambda q, x, key=None: q(given, x, None, None, key)[0][0].z)
    plain, other = run(quantizer, latent), run(quantizer, 2.0 - latent)
    assert np.all(np.any(np.asarray(plain != other), axis=(1, 2, 3, 4)))
    kept = []
    for seed in range(4):
        key = jax.random.key(seed)
        z, changed = run(quantizer, latent, key), run(quantizer, 2.0 - latent, key)
        # A clip whose residual is dropped does not see that the latent is another one.
        kept += np.any(np.asarray(z != changed), axis=(1, 2, 3, 4)).tolist()
        same = np.all(np.asarray(z == plain), axis=(1, 2, 3, 4))
        assert same.tolist() == kept[-len(latent) :]
    assert 0.2 < np.mean(kept) < 0.8


def test_levels_that_read_the_latent_see_no_stage_and_stream():
    sizes = tiny_config(grids=((4, 16), (4, 8)), stages=(5, 5), inputs="residual-fine")
    levels = LaPQ(LaPQConfig.of(sizes), rngs=nnx.Rngs(0))
    latents = noise(0, 6, 5, 4, 4, 4)
    stages = (jnp.full((), jnp.nan),) * 4
    levels.fit([latents], stages=[stages], steps=5)
    run = nnx.jit(lambda model, z, cache: model(stages, z, None, cache))
    whole, _ = run(levels, latents[:1], None)
    other, _ = run(levels, latents[1:2], None)
    for level, changed in zip(whole, other, strict=True):
        assert float(jnp.mean(level.q != changed.q)) > 0.2
    parts, caches = [], None
    for start, stop in ((0, 1), (1, 3), (3, 5)):
        cache = StreamCache(levels, caches)
        parts.append(levels(stages, latents[:1, start:stop], None, cache)[0])
        caches = cache.caches
    for level, *pieces in zip(whole, *parts, strict=True):
        joined = jnp.concatenate([piece.z for piece in pieces], axis=1)
        np.testing.assert_allclose(joined, level.z, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="or 5: the latent"):
        tiny_config(stages=(6, 6, 6, 6))


def test_a_level_starts_with_whitened_features():
    lateral = LateralConnection(12, (1, 8), (2, 16), 256, rngs=nnx.Rngs(0))
    # One direction has nearly all of the variance, and all have a large mean.
    feature = 0.05 * noise(0, 8, 9, 8, 8, 12) + noise(1, 8, 9, 8, 8, 1) * noise(2, 12) + 2.0

    def seen(lateral):
        patches = space_to_depth(lateral.norm(feature), 2)
        rows = lateral.embed(group_time(patches, 2)).reshape(-1, 256)
        values = np.linalg.eigvalsh(np.cov(np.asarray(rows, np.float64), rowvar=False))
        return np.abs(rows.mean(axis=0)).mean(), values.sum() ** 2 / (values**2).sum()

    mean, rank = seen(lateral)
    lateral.whiten([feature])
    whitened_mean, whitened_rank = seen(lateral)
    assert mean > 0.3 and whitened_mean < 0.05
    assert whitened_rank > 4 * rank
