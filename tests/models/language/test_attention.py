"""Attention in blocks against JAX's own: values, gradients, what a layer keeps for them."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.models.language import attention
from pyratok_jax.models.language.attention import attend
from pyratok_jax.models.language.config import tiny
from pyratok_jax.models.language.model import LanguageModel

SCALE = 0.3


def _arrays(t, s, pad):
    """Random queries, keys and values; `pad` names the side of the keys that is padded."""
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (2, t, 6, 8))
    key, value = (jax.random.normal(k, (2, s, 2, 8)) for k in keys[1:3])
    given = jax.random.normal(keys[3], query.shape)
    slot = jnp.arange(s)
    real = {"none": slot >= 0, "left": slot >= 3, "right": slot < s - 2}[pad]
    mask = real & (slot <= s - t + jnp.arange(t)[:, None])
    mask = jnp.broadcast_to(mask, (2, 1, t, s))
    # Outputs that mean nothing (queries that see nothing) are not asked for.
    return query, key, value, mask, given * mask.any(axis=-1)[:, 0, :, None, None]


# Compiled as a whole, once for all paddings.
@jax.jit
def _plain(arrays, mask, given):
    run = functools.partial(jax.nn.dot_product_attention, mask=mask, scale=SCALE)
    values, pull = jax.vjp(run, *arrays)
    return values, pull(given)


@jax.jit
def _ours_in_blocks_of_4(arrays, mask, given):
    values, pull = jax.vjp(lambda *arrays: attend(*arrays, mask, SCALE), *arrays)
    return values, pull(given)


@pytest.mark.parametrize("pad", ["none", "left", "right"])
@pytest.mark.parametrize(("t", "s"), [(11, 11), (11, 16), (8, 9), (1, 7), (3, 3)])
def test_equals_plain_attention_and_its_gradient(t, s, pad, monkeypatch):
    """Whole and broken blocks of 4, fewer queries than a block, cached keys before them."""
    monkeypatch.setattr(attention, "BLOCK", 4)
    *arrays, mask, given = _arrays(t, s, pad)
    want, want_gradients = _plain(arrays, mask, given)
    got, gradients = _ours_in_blocks_of_4(arrays, mask, given)
    seen = np.asarray(given != 0)
    np.testing.assert_allclose(np.where(seen, got, 0), np.where(seen, want, 0), atol=1e-6)
    for a, b in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_no_product_reads_keys_after_the_end_of_its_block(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 4)
    *arrays, mask, _ = _arrays(8, 11, "none")
    text = str(jax.make_jaxpr(lambda q, k, v: attend(q, k, v, mask, SCALE))(*arrays))
    assert "f32[2,2,3,4,7]" in text and "f32[2,2,3,4,11]" in text
    assert "f32[2,2,3,8,11]" not in text


def test_bfloat16_differs_from_float32_by_its_rounding():
    *arrays, mask, given = _arrays(11, 16, "none")
    low = [x.astype(jnp.bfloat16) for x in arrays]

    @jax.jit
    def run(arrays, given):
        values, pull = jax.vjp(lambda q, k, v: attend(q, k, v, mask, SCALE), *arrays)
        return values, pull(given)

    want, want_gradients = run([x.astype(jnp.float32) for x in low], given)
    got, gradients = run(low, given.astype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.02)
    for a, b in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.06)


def test_the_backward_pass_does_not_attend_again_forwards():
    """A layer's scores are computed twice, not a third time on the way to its other activations."""
    model = LanguageModel(tiny(), rngs=nnx.Rngs(0), remat="layers")
    graph, state = nnx.split(model)
    x = jnp.ones((1, 5, 32))
    run = jax.grad(lambda x: nnx.merge(graph, state)(x).hidden.sum())
    text = str(jax.make_jaxpr(run)(x))
    # So large are the scores, forwards and again in the gradient, and the weights' gradient.
    shapes = re.findall(r"f32\[([\d,]+)\] = dot_general", text)
    assert [math.prod(map(int, shape.split(","))) for shape in shapes].count(4 * 5 * 5) == 3
