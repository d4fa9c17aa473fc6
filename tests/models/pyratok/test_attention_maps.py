"""Attention maps: they are those with which the levels were computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.models.pyratok.model import PyraTok, attention_maps
from pyratok_jax.nn.text_attention import TextCondition
from tests.losses.tiny import captions, clip, tiny_config, tiny_model


def test_maps_are_distributions_over_real_words_on_the_token_grids():
    text = captions(2)
    found = nnx.jit(attention_maps)(tiny_model(), clip(), text)
    assert [m.shape for m in found] == [(2, *s, 3) for s in tiny_model().grid_shapes(5, 32, 32)]
    for level in found:
        np.testing.assert_allclose(level.sum(-1), 1.0, rtol=1e-5)
        assert not np.asarray(level)[1, ..., 2].any() and np.asarray(level).std() > 0


def test_a_map_is_what_the_level_pooled_its_values_with():
    """With one head, the pooled value is the map times the words' values."""
    model = PyraTok(tiny_config(heads=1), rngs=nnx.Rngs(0))
    text = TextCondition(jax.random.normal(jax.random.key(0), (2, 2, 12)), jnp.ones((2, 2), bool))
    block, seen = model.quantizer.blocks[0], {}
    inner = block.attention

    class Recorder(nnx.Module):
        def __call__(self, x, text):
            update, seen["pooled"] = inner(x, text)
            return update, seen["pooled"]

        def weights(self, x, text):
            return inner.weights(x, text)

    block.attention = Recorder()
    run = jax.jit(lambda video: (attention_maps(model, video, text)[0], seen["pooled"]))
    first, pooled = run(clip())
    values = inner.value(inner.text_norm(text.embeddings))
    expected = jnp.einsum("bthwl,bld->bthwd", first, values)
    np.testing.assert_allclose(pooled, expected, atol=1e-5)


def test_a_tokenizer_without_text_has_no_maps():
    model = PyraTok(tiny_config(text_guidance=False), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="do not attend to text"):
        attention_maps(model, clip(), captions())
