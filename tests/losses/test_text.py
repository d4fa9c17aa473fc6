"""Term 5: values by hand, what it trains, and that captions matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.losses import text as T
from pyratok_jax.losses.settings import FORMS, POOLINGS
from pyratok_jax.models.text_statistics import Captions, plain_captions
from pyratok_jax.nn.text_attention import TextCondition
from tests.losses.tiny import BITS, TEXT_WIDTH, Embedding, captions


def codes(batch, seed=0):
    z = jax.random.normal(jax.random.key(seed), (batch, 1, 2, 2, BITS))
    return jnp.where(z > 0, 1.0, -1.0)


def features_and_captions(batch=4, width=6, seed=0):
    a, b = jax.random.split(jax.random.key(seed))
    text = TextCondition(jax.random.normal(b, (batch, 3, width)), jnp.ones((batch, 3), bool))
    return jax.random.normal(a, (batch, 5, width)), plain_captions(text)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_contrastive_is_the_cross_entropy_both_ways(pooling):
    features, text = features_and_captions()
    mean = unit(np.asarray(features).mean(1)) @ unit(text.pooled).T
    best = np.einsum("bnd,cld->bcln", unit(features), unit(text.words)).max(-1).mean(-1)
    cosines = np.einsum("bnd,cd->bnc", unit(features), unit(text.pooled))
    peak = 0.07 * np.log(np.exp(cosines / 0.07).mean(axis=1))
    peaks = np.log(np.exp(2.0 * np.asarray(features, np.float64)).mean(axis=1)) / 2.0
    poolings = {"mean": mean, "words": best, "both": (mean + best) / 2, "tokens": peak}
    poolings["peaks"] = unit(peaks) @ unit(text.pooled).T
    scores = poolings[pooling] / 0.2
    rows = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    columns = scores - np.log(np.exp(scores).sum(0, keepdims=True))
    expected = -(np.diag(rows).mean() + np.diag(columns).mean()) / 2
    value = T.contrastive(features, text, 0.2, pooling=pooling)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_a_small_thing_before_a_large_background_is_found_by_its_tokens():
    rng = np.random.default_rng(0)
    things, background = rng.normal(size=(3, 32)), rng.normal(size=32)
    text = plain_captions(
        TextCondition(jnp.asarray(things, jnp.float32)[:, None], jnp.ones((3, 1), bool))
    )
    # Every clip shows the background, nearly opposite to its own thing, in all tokens but one.
    clips = np.repeat((background - 2 * things)[:, None], 40, axis=1)
    clips[:, 7] = 3.0 * things
    clips = jnp.asarray(clips, jnp.float32)
    right = jnp.arange(3)
    assert (jnp.argmax(T.similarity(clips, text, "tokens"), axis=1) == right).all()
    assert not (jnp.argmax(T.similarity(clips, text, "mean"), axis=1) == right).any()


def test_words_of_a_caption_are_found_in_different_tokens_by_the_peaks_of_features():
    # Three parts, each a group of features; a caption names two of them.
    parts = np.eye(3).repeat(8, axis=1)
    pairs = jnp.asarray([parts[0] + parts[1], parts[0] + parts[2], parts[1] + parts[2]])
    text = plain_captions(TextCondition(pairs[:, None], jnp.ones((3, 1), bool)))
    clip = 0.1 * np.random.default_rng(0).normal(size=(1, 40, 24))
    clip[0, 7], clip[0, 23] = 3.0 * parts[0], 3.0 * parts[1]
    peaks, tokens = (
        T.similarity(jnp.asarray(clip, jnp.float32), text, name)[0] for name in ("peaks", "tokens")
    )
    assert jnp.argmax(peaks) == 0
    # One token has one part: for it, captions that share that part are nearly as good.
    assert peaks[0] - peaks[1:].max() > 3 * (tokens[0] - tokens[1:].max())


def test_equal_captions_are_positives_and_clips_without_one_do_not_count():
    features, text = features_and_captions(5)
    twice = jnp.array([0, 0, 2, 3, 4])
    text = Captions(text.pooled[twice], text.words[twice], text.mask.at[4].set(False))
    same = T.same_caption(text)
    expected = np.eye(5, dtype=bool)
    expected[0, 1] = expected[1, 0] = True
    expected[4, 4] = False
    np.testing.assert_array_equal(same, expected)
    # A clip without a caption is no negative: what it holds changes nothing.
    value = T.contrastive(features, text, 0.1)
    other = text._replace(pooled=text.pooled.at[4].set(7.0))
    np.testing.assert_allclose(T.contrastive(features.at[4].add(3.0), other, 0.1), value, rtol=1e-5)
    one = text._replace(mask=text.mask.at[:].set(False))
    loss = lambda f: T.contrastive(f, one, 0.1)  # noqa: E731
    nothing, gradient = jax.value_and_grad(loss)(features)
    assert float(nothing) == 0 and not gradient.any()


@pytest.mark.parametrize("form", FORMS)
def test_swapped_captions_change_the_loss_and_the_gradient_reaches_the_codes(form):
    embed, text = Embedding(), plain_captions(captions(2))
    text = text._replace(mask=jnp.ones_like(text.mask))

    def loss(q, text):
        features = T.code_features(q, 1, embed, 0)
        if form == "kl":
            return T.feature_kl(features, text, 0.5)
        return T.contrastive(features, text, 0.07)

    q = codes(2)
    value, gradient = jax.value_and_grad(loss)(q, text)
    assert np.isfinite(gradient).all() and (jnp.abs(gradient).max(axis=(1, 2, 3, 4)) > 0).all()
    swapped = Captions(text.pooled[::-1], text.words[::-1], text.mask[::-1])
    assert abs(float(loss(q, swapped) - value)) > 1e-3


def test_the_kl_form_is_the_kl_of_features_by_hand():
    q, text, embed = codes(3), plain_captions(captions(3)), Embedding()
    value = T.feature_kl(T.code_features(q, 1, embed), text, 0.5)
    terms = []
    for row in range(2):
        words = np.asarray(captions(3).embeddings[row, : 3 - row], np.float64).mean(0) / 0.5
        target = np.exp(words) / np.exp(words).sum()
        for code in np.asarray(q[row], np.float64).reshape(-1, BITS):
            e = code @ np.asarray(embed.map.kernel[...]) + np.asarray(embed.map.bias[...])
            e = np.exp((e + np.asarray(embed.levels[...])[1]) / 0.5)
            e = e / e.sum()
            terms.append(np.sum(e * (np.log(e) - np.log(target))))
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-4)


def test_retrieval_counts_the_clips_whose_own_caption_is_nearest():
    _, text = features_and_captions(4)
    features = text.pooled[:, None]
    assert float(T.retrieved(features, text)) == 1.0
    wrong = features[jnp.array([1, 0, 2, 3])]
    assert float(T.retrieved(wrong, text)) == 0.5


def test_a_limit_on_tokens_takes_evenly_spaced_ones():
    q = jax.random.normal(jax.random.key(0), (1, 1, 2, 5, 2))
    got = T.code_features(q, 0, lambda q, level, chosen: q.reshape(1, 10, 2)[:, chosen], 5)
    np.testing.assert_array_equal(got[0], q.reshape(10, 2)[::2])


def test_words_beyond_the_caption_do_not_matter():
    features, text = features_and_captions(3)
    text = text._replace(mask=text.mask.at[1, 2].set(False))
    value = T.contrastive(features, text, 0.1, pooling="words")
    changed = text._replace(words=text.words.at[1, 2].set(9.0))
    assert float(T.contrastive(features, changed, 0.1, pooling="words")) == float(value)
    with pytest.raises(ValueError, match="mean, words, tokens, peaks, both"):
        T.similarity(features, text, "max")
    assert TEXT_WIDTH
