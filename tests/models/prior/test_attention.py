"""Attention in blocks that skip what nothing sees is attention under the whole mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.models.prior import attention
from pyratok_jax.models.prior.layout import NEVER, Visibility, visible


def dense(query, key, value, mask):
    """In float64, head by head; kv heads are shared."""
    shared = query.shape[2] // key.shape[2]
    key, value = (np.repeat(np.asarray(x, np.float64), shared, axis=2) for x in (key, value))
    scores = np.einsum("bthd,bshd->bhts", np.asarray(query, np.float64), key)
    scores = np.where(mask[:, None], scores * query.shape[-1] ** -0.5, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(axis=-1, keepdims=True), value)


@pytest.mark.parametrize(("short", "window"), [(64, 0), (16, 2)])
def test_blocks_equal_the_whole_mask(monkeypatch, short, window):
    """150 tokens: a prefix, and parts of 30 that see themselves and the prefix, or the past too."""
    monkeypatch.setattr(attention, "SHORT_BLOCK", short)
    parts = np.repeat(np.arange(5), 30).astype(np.int32)
    writes = np.where(parts == 0, -1, np.where(parts % 2, parts, NEVER)).astype(np.int32)
    seen = Visibility(writes, parts, parts)
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (2, 150, 4, 8))
    key, value = (jax.random.normal(k, (2, 150, 2, 8)) for k in keys[1:])
    valid = np.ones((2, 150), bool)
    valid[1, 3:20] = False
    mask = np.asarray(visible(seen, seen, window))[None] & valid[:, None]

    def run(query, key, value):
        return attention.attend_static(query, key, value, seen, jnp.asarray(valid), window)

    def slopes():
        return jax.jit(jax.grad(lambda *x: jnp.sum(jnp.square(run(*x))), argnums=(0, 1, 2)))

    expected = dense(query, key, value, mask)
    np.testing.assert_allclose(run(query, key, value), expected, atol=2e-6)
    found = slopes()(query, key, value)
    monkeypatch.setattr(attention, "SHORT_BLOCK", 150)
    whole = slopes()(query, key, value)
    for a, b in zip(found, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
