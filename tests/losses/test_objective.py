"""The objective: its sum, what is computed at all, and what each term trains in a tokenizer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.losses import codebook, features
from pyratok_jax.losses import pixel as reconstruction
from pyratok_jax.losses.objective import Posterior, objective
from pyratok_jax.losses.settings import LossSettings, LossWeights
from pyratok_jax.losses.text import code_features, contrastive
from pyratok_jax.models.pyratok.quantizers.base import build_quantizer, sign_commitment
from pyratok_jax.models.text_statistics import plain_captions
from pyratok_jax.nn.lora import LoRAParam
from tests.losses.tiny import Embedding, captions, clip, tiny_config, tiny_model

NONE = LossWeights(**{f.name: 0.0 for f in dataclasses.fields(LossWeights)})
GROUPS = {"reconstruction": 1.0, "codebook": 1.0, "drift": 1.0}


def only(**weights):
    """The given terms with their groups at 1 and everything else at 0."""
    return dataclasses.replace(NONE, **(GROUPS | weights))


def mean_square(a, b):
    return jnp.mean((a - b) ** 2, axis=(1, 2, 3))


def forward(model):
    output = model.encode(clip(), captions())
    return model.decode(output.latent), output


@functools.cache
def passed():
    return nnx.jit(forward)(tiny_model())


def run(weights, rebuilt_and_output=None, **inputs):
    rebuilt, output = rebuilt_and_output or passed()
    # A reference some way off, so that the drift has a gradient.
    frozen = Posterior(jax.lax.stop_gradient(output.mean) + 0.1, output.logvar - 0.1)
    given = dict(
        text=plain_captions(captions()), embed=Embedding(), lpips=mean_square, frozen=frozen
    )
    given["quantizer"] = tiny_model().quantizer
    compute = functools.partial(objective, weights, clip(), **(given | inputs))
    return jax.jit(compute)(rebuilt, output)


def test_the_defaults_are_the_published_group_weights():
    w = LossWeights()
    groups = (w.reconstruction, w.codebook, w.autoregressive, w.drift)
    assert groups == (2.5, 2.5, 1.5, 0.6)
    assert w.effective()["l1"] == 2.5 and w.effective()["commitment"] == 2.5 * w.commitment


def test_the_paper_s_bracket_has_unit_weights():
    weights = LossWeights().paper()
    inside = ("commitment", "entropy", "hierarchy", "text", "text_codebook")
    assert all(getattr(weights, name) == 1.0 for name in inside)
    assert all(weights.effective()[name] == 2.5 for name in inside)
    assert weights.autoregressive == 1.5 and weights.l1 == 1.0


def test_the_paper_s_formulas():
    """Eq. 2 has no batch entropy, no stop-gradient on the previous level, and a KL to the text."""
    ours = LossSettings(lpips_frames=3, vocabulary=48)
    paper = ours.paper()
    assert (paper.gamma, paper.hierarchy_stop_gradient, paper.text_form) == (0.0, False, "kl")
    assert paper.dino_reference == "masked" and paper.lpips_frames == 3 and paper.vocabulary == 48


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_the_text_term_trains_the_attention_that_pools_the_text(part):
    """Through the prior alone: the visual logits are held fixed."""
    model = tiny_model()

    @nnx.jit
    def gradient(model):
        def loss(model):
            level = model.encode(clip(), captions()).levels[1]
            z, present = jax.lax.stop_gradient(level.z), jnp.ones(2, bool)
            return codebook.text_alignment(z, level.text_logits, present, temperature=0.25)

        return nnx.grad(loss)(model)

    attention = gradient(model)["quantizer"]["blocks"][1]["attention"]
    assert np.abs(np.asarray(attention[part]["kernel"][...])).max() > 0


def test_the_total_is_the_weighted_sum_of_every_term():
    weights = LossWeights(drift_vae=0.3, autoregressive=1.5)
    total, terms = run(weights, autoregressive=jnp.float32(4.0))
    expected = jax.jit(terms_by_hand)(*passed())
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5, err_msg=name)
    effective = weights.effective()
    by_hand = sum(effective[name] * float(value) for name, value in expected.items())
    np.testing.assert_allclose(total, by_hand, rtol=1e-5)
    assert float(terms["total"]) == float(total)
    assert all(f"batch_entropy/level_{i}" in terms for i in (1, 2, 3, 4))


def terms_by_hand(rebuilt, output):
    video, levels, embed = clip(), output.levels, Embedding()
    text = plain_captions(captions())
    return {
        "l1": reconstruction.l1(video, rebuilt),
        "ssim": reconstruction.ssim_loss(video, rebuilt),
        "lpips": jnp.mean((video - rebuilt) ** 2),
        "commitment": sum(sign_commitment(x.z, x.q) for x in levels),
        "entropy": sum(codebook.entropy(x.z, temperature=0.25)[0] for x in levels),
        "hierarchy": sum(
            codebook.hierarchy(x.z, y.z, temperature=0.25)
            for x, y in zip(levels[1:], levels[:-1], strict=True)
        ),
        "text": sum(
            codebook.text_alignment(x.z, x.text_logits, jnp.ones(2, bool), temperature=0.25)
            for x in levels
        ),
        "text_codebook": sum(
            contrastive(code_features(x.q, i, embed, 1024), text, 0.07)
            for i, x in enumerate(levels)
        ),
        "autoregressive": 4.0,
        "drift_vae": features.gaussian_kl(
            output.mean, output.logvar, output.mean + 0.1, output.logvar - 0.1
        ),
    }


@pytest.mark.parametrize("factors", [(1.0, 0.0), (1.0, 0.25, 0.0, 2.0), (0.5,)])
def test_factors_of_levels_scale_their_text_terms_alone(factors):
    settings = LossSettings(text_levels=factors)
    _, terms = run(only(text_codebook=1.0), settings=settings)
    text, embed = plain_captions(captions()), Embedding()

    def by_hand(levels):
        values = [contrastive(code_features(x.q, i, embed, 1024), text, 0.07)
                  for i, x in enumerate(levels)]  # fmt: skip
        by_level = [*factors, *[factors[-1]] * (len(levels) - len(factors))]
        return sum(f * v for f, v in zip(by_level, values, strict=True)), values

    expected, values = jax.jit(by_hand)(passed()[1].levels)
    assert len({float(v) for v in values}) == len(values) > 1
    np.testing.assert_allclose(terms["text_codebook"], expected, rtol=1e-5)


@pytest.mark.parametrize("factors", [(), (0.0, 0.0), (1.0, -0.5), (float("inf"),)])
def test_impossible_factors_of_levels_are_refused(factors):
    with pytest.raises(ValueError, match="text_levels"):
        LossSettings(text_levels=factors)


def test_a_term_without_weight_is_not_computed():
    def explode(*_):
        raise AssertionError("computed")

    _, terms = run(only(l1=1.0), lpips=explode, embed=explode, frozen=None, text=None)
    assert set(terms) == {"total", "l1"}
    group_off = dataclasses.replace(LossWeights(), reconstruction=0.0, codebook=0.0)
    _, terms = run(group_off, lpips=explode, embed=explode, autoregressive=jnp.float32(0))
    assert set(terms) == {"total", "autoregressive", "drift_vae"}


@pytest.mark.parametrize(
    "term, missing",
    [
        ("lpips", "lpips"),
        ("text", "text"),
        ("text_codebook", "embed"),
        ("text_codebook", "text"),
        ("drift_vae", "frozen"),
    ],
)
def test_a_weighted_term_without_its_input_is_refused(term, missing):
    with pytest.raises(ValueError, match=f"{term} has a weight but no"):
        run(only(**{term: 1.0}), **{missing: None})


def test_no_weight_at_all_is_refused():
    with pytest.raises(ValueError, match="nothing to train"):
        run(NONE)


PARTS = {
    "adapters": lambda path, value: isinstance(value, LoRAParam),
    "head": lambda path, value: path[1:2] == ("blocks",) and path[3:4] == ("head",),
    "text_prior": lambda path, value: path[3:4] == ("text_prior",),
    "text_attention": lambda path, value: path[3:5] == ("attention", "query"),
    "synthesis": lambda path, value: path[:2] == ("quantizer", "synthesis"),
    "embedding": lambda path, value: path[:1] == ("E",),
}
LEVELS = {"adapters", "head", "text_attention"}
REACH = {
    "l1": LEVELS | {"synthesis"},
    "ssim": LEVELS | {"synthesis"},
    "lpips": LEVELS | {"synthesis"},
    # A level reads the codes of the previous one and what they leave over, whose gradient into the
    # synthesis is stopped.
    "commitment": LEVELS,
    "entropy": LEVELS,
    "hierarchy": LEVELS,
    "text": LEVELS | {"text_prior"},
    "text_codebook": LEVELS | {"embedding"},
    "drift_vae": {"adapters"},
}


@functools.cache
def pullback():
    """Cotangents of all terms -> gradients; compiled once for all of them."""
    every = only(**dict.fromkeys(REACH, 1.0))

    def terms(model, embed):
        return run(every, forward(model), embed=embed)[1]

    @nnx.jit
    def gradient(model, embed, cotangents):
        def loss(model, embed):
            found = terms(model, embed)
            return sum(cotangents[name] * found[name] for name in REACH)

        return nnx.grad(loss, argnums=(0, 1))(model, embed)

    return gradient


def reach_of(term: str) -> set[str]:
    cotangents = {name: jnp.float32(name == term) for name in REACH}
    levels, embed = pullback()(tiny_model(), Embedding(), cotangents)
    flat = list(nnx.to_flat_state(nnx.state(levels)))
    flat += [(("E", *path), value) for path, value in nnx.to_flat_state(nnx.state(embed))]
    reached = set()
    for path, value in flat:
        array = np.asarray(value[...])
        assert np.isfinite(array).all(), (term, path)
        if array.any():
            reached |= {name for name, inside in PARTS.items() if inside(path, value)}
    return reached


@pytest.mark.parametrize("term", list(REACH))
def test_each_term_reaches_what_it_should_and_only_that(term):
    assert reach_of(term) == REACH[term]


def test_vector_codebooks_commit_both_ways_and_have_no_entropy():
    rebuilt, output = passed()
    level = output.levels[0]
    vectors = level.z + 0.5
    output = output._replace(levels=(level._replace(vectors=vectors),))
    vq = build_quantizer(tiny_config(quantizer="vq", grids=((4, 8),)), rngs=nnx.Rngs(0))
    _, terms = run(only(commitment=1.0), (rebuilt, output), quantizer=vq)
    np.testing.assert_allclose(terms["commitment"], 0.25 + 4 * 0.25, rtol=1e-5)
    with pytest.raises(ValueError, match="no entropy term: set it to 0"):
        run(only(entropy=1.0), (rebuilt, output), quantizer=vq)


def test_the_lpips_frames_setting_limits_the_frames():
    counts = []

    def distance(a, b):
        counts.append(a.shape[0])
        return mean_square(a, b)

    run(only(lpips=1.0), lpips=distance, settings=LossSettings(lpips_frames=2))
    assert counts == [4]
