"""The data-dependent start: it must leave far less of the latent than random codes do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.checkpoints.partition import stored_name
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.pyratok.quantizers.final_latent import each_position, energy, square_root
from pyratok_jax.nn.grids import depth_to_space
from pyratok_jax.nn.lowering import conv_lowering
from pyratok_jax.training.init.calibration import (
    CalibrationBatch,
    decoder_metric,
    metric_of,
    refine,
)
from tests.tiny_tokenizer import tiny_config

quantize = nnx.jit(PyraTok.quantize)


def latents(seed: int) -> jax.Array:
    """Smooth latents of two clips: coarse structure, some detail, like those of real video."""
    keys = jax.random.split(jax.random.key(seed), 2)
    coarse = jnp.repeat(jnp.repeat(jax.random.normal(keys[0], (8, 5, 4, 6, 4)), 2, 2), 2, 3)
    return coarse + 0.3 * depth_to_space(jax.random.normal(keys[1], (8, 5, 4, 6, 16)), 2)


def features(model: PyraTok) -> tuple[jax.Array, ...]:
    """Stage features that say nothing."""
    shapes = ((17, 32, 48), (9, 16, 24), (5, 8, 12), (5, 8, 12))
    channels = model.config.vae.stage_channels
    return tuple(jnp.zeros((8, *s, c)) for s, c in zip(shapes, channels, strict=True))


def test_each_level_lowers_what_is_left_and_held_out_latents_profit():
    model = PyraTok(tiny_config(bits=12), rngs=nnx.Rngs(0))
    left = model.quantizer.fit([latents(0)], steps=100)
    assert len(left) == 4 and all(a > b for a, b in zip(left, left[1:], strict=False))
    assert left[-1] < 0.25
    target = latents(1)
    _, synthesised = quantize(model, features(model), target, None)
    assert float(jnp.mean((synthesised - target) ** 2) / jnp.mean(target**2)) < 0.4


def test_the_other_levels_are_fitted_to_what_kept_ones_leave():
    trained = PyraTok(tiny_config(bits=8), rngs=nnx.Rngs(0)).quantizer
    trained.fit([latents(0)], steps=30)
    # A level that has been trained attends to the null caption where there is no other.
    attention = trained.blocks[0].attention
    attention.out.kernel[...] += 5 * jax.random.normal(jax.random.key(5), (16, 16))
    tokenizer = PyraTok(tiny_config(bits=8), rngs=nnx.Rngs(1))
    null, model = tokenizer.condition(None, 1), tokenizer.quantizer
    for name in model.level_parts:
        nnx.update(getattr(model, name)[0], nnx.state(getattr(trained, name)[0]))
    before = nnx.to_pure_dict(nnx.state((model.blocks[0], model.synthesis[0])))
    seen, target = features(PyraTok(tiny_config(bits=8), rngs=nnx.Rngs(0))), latents(1)
    left = model.fit([target], stages=[seen], steps=30, kept=1, text=null)
    after = nnx.to_pure_dict(nnx.state((model.blocks[0], model.synthesis[0])))
    assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
    found = nnx.jit(lambda t, *x: t.quantize(*x, None))(tokenizer, seen, target)[0]
    untold = nnx.jit(lambda q, *x: q(*x, None))(model, seen, target)[0]
    assert float(jnp.mean(untold[0].q != found[0].q)) > 0.02
    alone = target - model.synthesis[0](found[0].q)
    assert left[0] == pytest.approx(float(jnp.sum(alone**2) / jnp.sum(target**2)), rel=1e-4)
    assert left[3] < 0.6 * left[0]
    assert all(a > b for a, b in zip(left, left[1:], strict=False))


def test_levels_that_share_arrays_cannot_be_kept():
    config = tiny_config(quantizer="lfq", grids=((4, 8),), bits=8)
    model = PyraTok(config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="cannot keep levels"):
        model.quantizer.fit([latents(0)], kept=1)


def test_the_same_seed_gives_the_same_start():
    runs = []
    for _ in range(2):
        model = PyraTok(tiny_config(), rngs=nnx.Rngs(0))
        model.quantizer.fit([latents(0)], steps=10, seed=3)
        runs.append(np.asarray(model.quantizer.blocks[3].analysis.rest.kernel[...]))
    np.testing.assert_array_equal(*runs)


def test_the_levels_follow_the_metric():
    """Two of four channels count a hundred times: with the metric less of these is left."""
    metric = np.diag([1.0, 100.0, 1.0, 100.0]) / 50.5
    left = []
    for root in (np.eye(4), square_root(metric)):
        model = PyraTok(tiny_config(bits=4), rngs=nnx.Rngs(0))
        model.quantizer.fit([latents(0)], root=root, steps=50)
        error = quantize(model, features(model), latents(0), None)[1] - latents(0)
        left.append(np.mean(np.square(error), axis=(0, 1, 2, 3)))
    assert left[1][[1, 3]].max() < 0.7 * left[0][[1, 3]].min()
    assert left[1][[0, 2]].min() > left[0][[0, 2]].max()


def test_the_root_measures_as_the_metric_does():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(4, 4))
    metric, errors = half @ half.T + 0.1 * np.eye(4), rng.normal(size=(2, 1, 3, 3, 4))
    root = square_root(metric)
    expected = np.einsum("bthwc,cd,bthwd->", errors, metric, errors) / errors.size
    np.testing.assert_allclose(energy([errors], root), expected, rtol=1e-6)
    patches = rng.normal(size=(5, 3 * 4))
    by_hand = np.concatenate([patches[:, 4 * i : 4 * i + 4] @ root for i in range(3)], axis=1)
    np.testing.assert_allclose(each_position(patches, root), by_hand, rtol=1e-12)


def test_a_linear_decoders_metric_is_found_and_blind_directions_keep_a_floor():
    """A decoder that maps every position alike by B has the metric B B, up to scale."""
    rng = np.random.default_rng(1)
    basis = rng.normal(size=(4, 9))
    basis[3] = 2.0 * basis[0]  # So 2 e_0 - e_3 is never seen.
    mean = np.trace(basis @ basis.T) / 4
    found = decoder_metric(
        lambda z: z @ jnp.asarray(basis, jnp.float32), latents(0), jax.random.key(0)
    )
    expected = (basis @ basis.T / mean + 0.02 * np.eye(4)) / 1.02
    np.testing.assert_allclose(found, expected, atol=1e-5)
    blind = np.array([2.0, 0, 0, -1]) / 5**0.5
    np.testing.assert_allclose(blind @ found @ blind, 0.02 / 1.02, atol=1e-5)


def test_neighbours_do_not_disturb_the_metric():
    """A decoder that mixes positions: the mean over positions of J^T J, by explicit derivatives."""
    z = np.asarray(latents(0)[:1, :2, :2, :3])
    kernel = jax.random.normal(jax.random.key(2), (3, 4, 2))

    def decode(x):
        padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1), (0, 0)))
        return sum(padded[:, :, :, i : i + x.shape[3]] @ kernel[i] for i in range(3)) ** 2

    jacobian = jax.jacobian(decode)(jnp.asarray(z)).reshape(-1, z.size // 4, 4)
    expected = np.einsum("onc,ond->cd", jacobian, jacobian, optimize=True)
    expected *= 4 / np.trace(expected)
    found = np.mean(
        [decoder_metric(decode, jnp.asarray(z), jax.random.key(i)) for i in range(24)], 0
    )
    np.testing.assert_allclose(found, (expected + 0.02 * np.eye(4)) / 1.02, atol=0.12)


def test_the_metric_is_the_same_in_the_form_for_tpus():
    model = PyraTok(tiny_config(), rngs=nnx.Rngs(0))
    z = np.asarray(latents(0)[:1, :2, :2, :2])
    plain = metric_of(model, z, 0)
    with conv_lowering("tpu"):
        np.testing.assert_allclose(metric_of(model, z, 0), plain, rtol=1e-4, atol=1e-5)


def test_descent_of_all_levels_lowers_the_error_and_leaves_the_text_path_alone():
    model = PyraTok(tiny_config(bits=8), rngs=nnx.Rngs(0))
    model.quantizer.fit([latents(0)], steps=20)
    batch = CalibrationBatch(np.asarray(latents(0)), tuple(np.asarray(x) for x in features(model)))

    def error():
        found = quantize(model, features(model), latents(0), None)[1]
        return float(jnp.mean((found - latents(0)) ** 2))

    before, start = jax.tree.map(jnp.copy, nnx.state(model)), error()
    refine(model, [batch], np.eye(4), steps=60, learning_rate=2e-3)
    assert error() < 0.9 * start
    changed = {
        stored_name(path)
        for (path, old), (_, new) in zip(
            nnx.to_flat_state(before), nnx.to_flat_state(nnx.state(model)), strict=True
        )
        if not np.array_equal(old[...], new[...])
    }
    assert changed and all(name.startswith(("blocks.", "synthesis.")) for name in changed)
    assert not any("attention" in name or "text_prior" in name for name in changed)
    assert {"blocks.0.head.kernel", "synthesis.3.smooth_out.kernel"} <= changed


def test_no_steps_of_descent_change_nothing():
    model = PyraTok(tiny_config(bits=8), rngs=nnx.Rngs(0))
    batch = CalibrationBatch(np.asarray(latents(0)), tuple(np.asarray(x) for x in features(model)))
    kernel = np.asarray(model.quantizer.blocks[0].head.kernel[...])
    assert np.isnan(refine(model, [batch], np.eye(4), steps=0, learning_rate=1e-3))
    np.testing.assert_array_equal(kernel, np.asarray(model.quantizer.blocks[0].head.kernel[...]))


def test_codes_of_a_first_level_that_is_kept_stay_while_the_error_falls():
    model = PyraTok(tiny_config(bits=8), rngs=nnx.Rngs(0))
    model.quantizer.fit([latents(0)], steps=20)
    batch = CalibrationBatch(np.asarray(latents(0)), tuple(np.asarray(x) for x in features(model)))

    def run():
        levels, found = quantize(model, features(model), latents(0), None)
        return levels[0].z, levels[1].z, float(jnp.mean((found - latents(0)) ** 2))

    first, second, error = run()
    refine(model, [batch], np.eye(4), steps=30, learning_rate=2e-3, kept=1)
    kept, moved, less = run()
    np.testing.assert_array_equal(kept, first)
    assert not np.array_equal(moved, second)
    assert less < 0.95 * error
