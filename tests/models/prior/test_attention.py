"""Attention in blocks that skip what nothing sees is attention under the whole mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.models.prior import attention
from pyratok_jax.models.prior.attention import Segment, attend, attend_static
from pyratok_jax.models.prior.layout import NEVER, Visibility, join, visible
from pyratok_jax.models.prior.model import Prior, narrowed
from tests.models.prior.tiny import LAYOUT, codes, config, text


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


def sequences():
    """A prefix, contexts and parts as `blocks` has them; a causal line; all to all."""
    n, group = LAYOUT.size, np.repeat(np.arange(2, dtype=np.int32), 4)
    order = np.argsort(LAYOUT.part, kind="stable")
    blocks = join(
        Visibility.of(3, writes=-1, reads=0),
        Visibility(group, group + 1, np.full(8, -1, np.int32)),
        Visibility(np.full(n, NEVER, np.int32), LAYOUT.group[order], LAYOUT.part[order]),
    )
    line = np.arange(21, dtype=np.int32)
    raster = Visibility(line, line + 1, np.full(21, -1, np.int32))
    return {"blocks": blocks, "raster": raster, "masked": Visibility.of(21, writes=NEVER, reads=0,
                                                                       part=0)}  # fmt: skip


@pytest.mark.parametrize(("order", "window"), [("blocks", 0), ("blocks", 1), ("raster", 0),
                                               ("masked", 0)])  # fmt: skip
def test_blocks_of_a_long_pass_equal_the_whole(order, window, monkeypatch):
    for name, value in {"_SHORT": 0, "LONG_BLOCK": 7, "TILE": 3}.items():
        monkeypatch.setattr(attention, name, value)
    seen = sequences()[order]
    n = len(seen.reads)
    keys = jax.random.split(jax.random.key(0), 4)
    query = jax.random.normal(keys[0], (2, n, 4, 8))
    key, value = (jax.random.normal(k, (2, n, 2, 8)) for k in keys[1:3])
    weight = jax.random.normal(keys[3], query.shape)
    # The second row lacks a key that others see; its own query then sees something all the same.
    valid = jnp.ones((2, n), bool).at[1, 1].set(False)
    mask = jnp.asarray(visible(seen, seen, window))[None] & valid[:, None]

    def blocks(query, key, value):
        return attend_static(query, key, value, seen, valid, window)

    def whole(query, key, value):
        return attend(query, (Segment(key, value, mask),))

    def gradients(run):
        def loss(*given):
            out = run(*given)
            return (out * weight).sum(), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(query, key, value)

    for found, expected in zip(*map(jax.tree.leaves, map(gradients, (blocks, whole))), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


def test_blocks_read_no_more_keys_than_they_see_in_tiles():
    seen = sequences()["blocks"]
    parts = attention._query_blocks(seen.part, 512)
    assert [s.start for s in parts[1:]] == [s.stop for s in parts[:-1]]
    assert all(len(set(seen.part[own].tolist())) == 1 for own in parts)
    needed = np.zeros(700, bool)
    needed[[130, 131, 300, 699]] = True
    assert attention._runs(needed, 128) == [slice(128, 384), slice(640, 700)]
    assert attention._runs(np.ones(700, bool), 128) == [slice(0, 700)]


def test_narrowed_weights_change_no_bit():
    made = Prior(config("raster"), rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    narrow = narrowed(made)
    kernels = [m.transformer.layers.query.kernel[...].dtype for m in (made, narrow)]
    assert kernels == [jnp.float32, jnp.bfloat16]
    run = nnx.jit(lambda prior, q: prior.raster(q, text(2), LAYOUT))
    np.testing.assert_array_equal(run(made, codes(2)), run(narrow, codes(2)))
