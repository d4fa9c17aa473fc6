"""Statistics of captions: exact running means, and what they do to real hidden states."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyratok_jax.losses.text import unit
from pyratok_jax.models.text_statistics import TextStatistics, pool_words
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.training.optimizer import is_statistic, make_optimizer
from tests.training.loop.test_step import optimizer_config

WIDTH = 5


def batch(seed, rows=6, length=4):
    a, b = jax.random.split(jax.random.key(seed))
    words = 3.0 + jnp.arange(1, WIDTH + 1) * jax.random.normal(a, (rows, length, WIDTH))
    count = jax.random.randint(b, (rows,), 0, length + 1)
    return TextCondition(words, jnp.arange(length)[None] < count[:, None])


def follow(statistics, texts):
    """Apply the gradients as training does."""
    optimizer = make_optimizer(optimizer_config(learning_rate=1e-3, clip_norm=0.1), 10)
    graph, state = nnx.split(statistics)
    params = {f"tokenizer.text_statistics.{p[0]}": v[...] for p, v in nnx.to_flat_state(state)}
    params["tokenizer.other.kernel"] = jnp.ones((2, 2))
    opt_state = optimizer.init(params)

    def module(params):
        names = [k for k in params if is_statistic(k)]
        flat = [((k.split(".")[-1],), nnx.Param(params[k])) for k in names]
        return nnx.merge(graph, nnx.from_flat_state(flat))

    for text in texts:
        grads = jax.grad(lambda p, text=text: module(p).tracking(text))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = {k: v + updates[k] for k, v in params.items()}
    return module(params), opt_state


def test_statistics_are_the_mean_over_batches_whatever_the_optimizer_clips():
    texts = [batch(seed) for seed in range(4)]
    found, opt_state = follow(TextStatistics(WIDTH), texts)
    words = [np.asarray(t.embeddings)[np.asarray(t.mask)] for t in texts]
    np.testing.assert_allclose(
        found.word_mean[...], np.mean([w.mean(0) for w in words], axis=0), rtol=1e-4
    )
    np.testing.assert_allclose(
        found.word_variance[...], np.mean([w.var(0) for w in words], axis=0), rtol=1e-4
    )
    pooled = [np.asarray(pool_words(t))[np.asarray(t.mask).any(1)] for t in texts]
    np.testing.assert_allclose(
        found.mean[...], np.mean([p.mean(0) for p in pooled], axis=0), rtol=1e-4
    )
    assert float(found.batches[...]) == 4
    # They have no moments, and cost the rest no learning rate.
    moments = [x.shape for x in jax.tree.leaves(opt_state) if getattr(x, "ndim", 0)]
    assert set(moments) == {(2, 2)}


def test_standardised_words_have_unit_spread_and_a_batch_without_captions_changes_nothing():
    text = batch(0)
    found, _ = follow(TextStatistics(WIDTH), [text])
    words = np.asarray(found.words(text).embeddings)[np.asarray(text.mask)]
    np.testing.assert_allclose(words.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(words.std(0)[1:], 1.0, rtol=1e-2)
    again, _ = follow(found, [text._replace(mask=jnp.zeros_like(text.mask))])
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (found, again)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_real_states_are_one_hot_and_alike_until_they_are_standardised():
    from pyratok_jax.checkpoints.pretrained import load_language
    from pyratok_jax.data.captions import CaptionTokenizer
    from pyratok_jax.data.world.films import world_film
    from pyratok_jax.losses.text import feature_kl
    from pyratok_jax.models.language.model import TextEncoder
    from pyratok_jax.models.text_statistics import plain_captions

    language = load_language("builtin:smollm2")
    sentences = [world_film("world", n).caption for n in range(24)]
    ids, mask = CaptionTokenizer(language.tokenizer, 48)(sentences)
    run = nnx.jit(lambda encoder, *text: encoder(*text))
    text = run(TextEncoder(language.model), jnp.asarray(ids), jnp.asarray(mask))
    statistics, _ = follow(TextStatistics(text.embeddings.shape[-1]), [text])
    raw, ours = plain_captions(text), statistics.captions(text)

    def entropy(pooled):
        log_p = jax.nn.log_softmax(pooled / 0.5, axis=-1)
        return float(-(jnp.exp(log_p) * log_p).sum(-1).mean())

    def alike(pooled):
        cosines = np.asarray(unit(pooled) @ unit(pooled).T)
        return cosines[~np.eye(len(cosines), dtype=bool)].mean()

    most = np.log(ours.pooled.shape[1])
    assert entropy(raw.pooled) < 0.5 and alike(raw.pooled) > 0.85
    assert 0.4 * most < entropy(ours.pooled) < 0.95 * most and alike(ours.pooled) < 0.1
    # Which caption is the target matters.
    features = ours.pooled[:, None]
    own = float(feature_kl(features, ours, 0.5))
    shifted = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), ours)
    assert own < 1e-3 < 0.5 < float(feature_kl(features, shifted, 0.5))
