"""Quantisers of the final latent: codes by brute force, the one rule, gradients, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.checkpoints.partition import Partition, stored_name
from pyratok_jax.models.pyratok.lfq import bits_to_ids, ids_to_bits, quantize
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.pyratok.quantizers.base import (
    Level,
    Quantizer,
    build_quantizer,
    check_latent_grids,
)
from pyratok_jax.models.pyratok.quantizers.final_latent import share_left
from pyratok_jax.models.pyratok.quantizers.registry import QUANTIZERS, Kind
from pyratok_jax.models.pyratok.quantizers.vector import nearest
from tests.losses.tiny import captions, clip, tiny_config
from tests.tiny_tokenizer import tiny_tokenizer

# Compiled as a whole: one by one, operations take long to compile.
apply = nnx.jit(lambda quantizer, latent, text: quantizer((), latent, text))
synthesize = nnx.jit(lambda quantizer, codes: quantizer.synthesize(codes))

LATENT = (4, 8)
CASES = {
    "residual": dict(grids=(LATENT,) * 4, bits=4),
    "residual-projected": dict(grids=((4, 16),) * 2, bits=6),
    "lfq": dict(grids=(LATENT,), bits=5),
    "vq": dict(grids=(LATENT,), bits=4, code_width=3),
    "gvq": dict(grids=((4, 16),) * 2, bits=4, vocabulary=11, code_width=3),
    "rvq": dict(grids=(LATENT,) * 3, bits=3, code_width=5),
}


def settings(case: str) -> dict:
    return {"quantizer": case.split("-")[0]} | CASES[case]


def make(case: str, text_width: int | None = None):
    changes = settings(case) | dict(synthesis_width=6, code_width=CASES[case].get("code_width", 3))
    guided = dict(text_guidance=text_width is not None, text_width=text_width or 12)
    return build_quantizer(tiny_config(**(changes | guided)), rngs=nnx.Rngs(0))


def latents(seed=0):
    return jax.random.normal(jax.random.key(seed), (2, 3, 4, 4, 4))


def random_codes(shapes, bits):
    return tuple(
        jnp.where(jax.random.normal(jax.random.key(n), (1, *shape, bits)) > 0, 1.0, -1.0)
        for n, shape in enumerate(shapes)
    )


@pytest.mark.parametrize("case", ["lapq", "residual", "residual-projected"])
def test_the_first_levels_alone_give_a_latent_that_the_others_add_to(case):
    if case == "lapq":
        model = tiny_tokenizer().model
        quantizer = model.quantizer
        codes = random_codes(model.grid_shapes(5, 32, 32), model.config.bits)
    else:
        quantizer = make(case)
        levels, _ = apply(quantizer, latents(), None)
        codes = tuple(level.q for level in levels)
    first = nnx.jit(lambda quantizer, codes, count: quantizer.synthesize_first(codes, count))
    whole = np.asarray(synthesize(quantizer, codes))
    np.testing.assert_allclose(first(quantizer, codes, jnp.asarray(len(codes))), whole, atol=1e-5)
    others = (codes[0], *(-q for q in codes[1:]))
    coarse = np.asarray(first(quantizer, codes, jnp.asarray(1)))
    np.testing.assert_array_equal(coarse, first(quantizer, others, jnp.asarray(1)))
    assert np.abs(coarse - whole).max() > 1e-3


def test_other_quantisers_have_no_latent_of_their_first_levels():
    quantizer = make("vq")
    assert not quantizer.builds_up
    with pytest.raises(ValueError, match="first levels alone"):
        quantizer.synthesize_first((), jnp.asarray(1))


@pytest.mark.parametrize("case", list(CASES))
def test_the_latent_is_a_function_of_the_tokens_alone(case):
    quantizer = make(case)
    smooth = getattr(quantizer.projection, "smooth_out", None)
    if smooth is not None:
        smooth.kernel[...] = jax.random.normal(jax.random.key(1), smooth.kernel.shape)
    levels, latent = apply(quantizer, latents(), None)
    bits = CASES[case]["bits"]
    ids = [np.asarray(bits_to_ids(level.q)) for level in levels]
    assert len(ids) == len(CASES[case]["grids"])
    assert all(i.max() < CASES[case].get("vocabulary", 2**bits) for i in ids)
    codes = tuple(ids_to_bits(jnp.asarray(i), bits) for i in ids)
    np.testing.assert_array_equal(synthesize(quantizer, codes), latent)


def test_residual_stages_are_the_published_arithmetic():
    x = np.asarray(latents(), np.float64)
    left, total, signs = x.copy(), 0.0, []
    for stage in range(4):
        sign = np.where(left >= 0, 1.0, -1.0)
        signs.append(sign)
        left -= sign * 2.0**-stage
        total = total + sign * 2.0**-stage
    levels, latent = apply(make("residual"), latents(), None)
    for level, sign in zip(levels, signs, strict=True):
        np.testing.assert_array_equal(level.q, sign)
    np.testing.assert_array_equal(latent, total)
    # What remains is below the last step wherever the sum can reach.
    reachable = np.abs(x) <= 1.875
    assert np.abs(np.asarray(latent) - x)[reachable].max() <= 0.125 + 1e-6


def test_the_nearest_vector_is_the_best_of_all():
    rng = np.random.default_rng(0)
    x, book = rng.normal(size=(50, 7)), rng.normal(size=(33, 7))
    expected = ((x[:, None] - book[None]) ** 2).sum(-1).argmin(axis=1)
    found = nearest(jnp.asarray(x, jnp.float32), jnp.asarray(book, jnp.float32))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", ["gvq", "rvq"])
def test_levels_quantise_groups_or_what_is_left(case):
    quantizer = make(case)
    levels, _ = apply(quantizer, latents(), None)
    features = nnx.jit(lambda projection, x: projection.features(x))(
        quantizer.projection, latents()
    )
    left, parts = features, jnp.split(features, len(levels), axis=-1) if case == "gvq" else []
    for i, (level, book) in enumerate(zip(levels, quantizer.codebooks, strict=True)):
        wanted = parts[i] if case == "gvq" else left
        np.testing.assert_allclose(level.z, wanted, atol=1e-6)
        np.testing.assert_array_equal(level.vectors, book[...][bits_to_ids(level.q)])
        left = left - level.vectors if case == "rvq" else left


@pytest.mark.parametrize("case", list(CASES))
def test_gradients_reach_projections_and_codebooks(case):
    def loss(quantizer, x):
        levels, latent = quantizer((), x, None)
        commit = sum(quantizer.commitment(level) for level in levels)
        return jnp.sum((latent - 0.1) ** 2) + commit

    differentiate = nnx.jit(nnx.grad(loss, argnums=(0, 1)))
    quantizer_gradient, gradient = differentiate(make(case), latents())
    assert np.isfinite(gradient).all() and np.any(np.asarray(gradient) != 0)
    dead = {
        path[-2] if len(path) > 1 else path[-1]
        for path, value in nnx.to_flat_state(nnx.state(quantizer_gradient))
        if not np.any(np.asarray(value[...]))
    }
    # Behind a zero-initialised layer nothing arrives at the first step.
    assert dead <= {"smooth_in"}


def test_the_straight_through_gradient_of_all_stages_adds_up_to_that_of_the_latent():
    gradient = jax.grad(lambda x: jnp.sum(make("residual")((), x, None)[1] * latents(3)))(latents())
    np.testing.assert_allclose(gradient, latents(3), rtol=1e-5)


def test_text_guides_the_stages_once_it_has_been_learnt():
    quantizer = make("residual", text_width=12)
    without = apply(quantizer, latents(), None)[1]
    np.testing.assert_array_equal(apply(quantizer, latents(), captions())[1], without)
    for attention in quantizer.attention:
        kernel = attention.out.kernel
        kernel[...] = jax.random.normal(jax.random.key(5), kernel.shape)
    levels, latent = apply(quantizer, latents(), captions())
    assert (np.asarray(latent) != np.asarray(without)).mean() > 0.05
    assert all(np.any(np.asarray(level.text_logits) != 0) for level in levels)
    codes = tuple(level.q for level in levels)
    np.testing.assert_array_equal(synthesize(quantizer, codes), latent)


@pytest.mark.parametrize("case", ["residual", "gvq"])
def test_a_tokenizer_with_another_quantiser_has_the_same_interface(case):
    config = tiny_config(**settings(case))
    assert type(config).from_dict(config.to_dict()) == config
    model = PyraTok(config, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)

    @jax.jit
    def both(state, video, text):
        model = nnx.merge(graphdef, state)
        output = model.encode(video, text)
        ids = tuple(bits_to_ids(level.q) for level in output.levels)
        return ids, jnp.clip(model.decode(output.latent), -1.0, 1.0)

    decode = jax.jit(lambda state, ids: nnx.merge(graphdef, state).detokenize(ids))
    ids, rebuilt = both(state, clip(), captions())
    assert [i.shape[1:] for i in ids] == list(model.grid_shapes(5, 32, 32))
    np.testing.assert_allclose(decode(state, ids), rebuilt, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class SignsConfig:
    scale: float

    @classmethod
    def of(cls, sizes):
        check_latent_grids(sizes, several_levels=False)
        return cls(scale=0.5)


class Signs(Quantizer):
    """The worked example of a new quantiser: the signs of the latent's channels."""

    def __init__(self, config, *, rngs, dtype=jnp.float32):
        self.scale = nnx.Param(jnp.float32(config.scale))

    def quantize(self, inputs):
        q = quantize(inputs.target)
        return (Level(inputs.target, q, jnp.zeros_like(q)),), self.synthesize((q,))

    def synthesize(self, codes, cache=None):
        return self.scale[...] * codes[0]

    def fit_to(self, data):
        self.scale[...] = jnp.mean(jnp.abs(jnp.asarray(data.latents[0])))
        return share_left(self, data.latents, data.metric_root)


def test_a_new_quantiser_is_a_class_and_a_line_in_the_registry(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, "signs", lambda: Kind(Signs, SignsConfig.of))
    model = PyraTok(tiny_config(quantizer="signs", grids=(LATENT,), bits=4), rngs=nnx.Rngs(0))
    assert model.quantizer.fit([latents()])[-1] < 0.6
    levels, latent = apply(model.quantizer, latents(), None)
    np.testing.assert_array_equal(synthesize(model.quantizer, (levels[0].q,)), latent)
    assert np.isfinite(model.quantizer.commitment(levels[0])) and not model.streams
    names = Partition(model, lambda name, variable: True).trainable
    assert "quantizer.scale" in names


def test_the_pyramids_arrays_keep_their_stored_names():
    """Checkpoints and optimizer states of before the levels were a quantiser still fit."""
    model = nnx.eval_shape(lambda: PyraTok(tiny_config(), rngs=nnx.Rngs(0)))
    names = Partition(model, lambda name, variable: True).trainable
    assert {"blocks.0.head.kernel", "synthesis.3.smooth_out.kernel"} <= set(names)
    assert not any(name.startswith("quantizer.") for name in names)
    inside = ("tokenizer", "quantizer", "blocks", 0, "head", "kernel")
    assert stored_name(inside) == "tokenizer.blocks.0.head.kernel"


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(quantizer="fsq"), "not one of lapq, none, residual, lfq, vq, gvq, rvq"),
        (dict(quantizer="rvq"), "same grid at every level"),
        (dict(quantizer="vq", grids=(LATENT,) * 2), "one level, but grids names 2"),
        (dict(quantizer="lfq", grids=((1, 8),)), "time stride of 4"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize("case", ["residual-projected", "lfq", "vq", "gvq", "rvq"])
def test_a_fitted_start_leaves_less_than_a_random_one_and_no_vector_unused(case):
    """On latents of few directions, which principal components and k-means must find."""
    mixing = jax.random.normal(jax.random.key(9), (3, 4))
    data = [jax.random.normal(jax.random.key(i), (2, 5, 8, 8, 3)) @ mixing for i in range(2)]
    quantizer = make(case)
    before = float(jnp.mean((apply(quantizer, data[0], None)[1] - data[0]) ** 2))
    left = quantizer.fit(data)[-1]
    after = float(jnp.mean((apply(quantizer, data[0], None)[1] - data[0]) ** 2))
    assert after < 0.7 * before and left < 0.7
    for level in apply(quantizer, data[0], None)[0]:
        if level.vectors is not None:
            used = len(np.unique(bits_to_ids(level.q)))
            assert used >= 0.8 * CASES[case].get("vocabulary", 2 ** CASES[case]["bits"])
