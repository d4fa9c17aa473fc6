"""Caches belong to layers, not to the order in which layers are called."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.nn.causal_conv import CausalConv3d
from pyratok_jax.nn.stream_cache import StreamCache


class _Pair(nnx.Module):
    """Two convolutions, run in either order."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a = CausalConv3d(2, 2, (3, 1, 1), rngs=rngs)
        self.b = CausalConv3d(2, 2, (3, 1, 1), rngs=rngs)

    def __call__(self, x, cache, *, swapped=False):
        if swapped:
            b = self.b(x, cache)
            return self.a(x, cache), b
        return self.a(x, cache), self.b(x, cache)


def _clip(frames):
    return jnp.asarray(np.random.default_rng(0).normal(size=(1, frames, 2, 2, 2)), jnp.float32)


def test_the_order_of_calls_does_not_matter():
    pair, x = _Pair(), _clip(6)
    whole = [pair.a(x), pair.b(x)]
    first = StreamCache(pair, None)
    begin = pair(x[:, :3], first)
    second = StreamCache(pair, first.caches)
    rest = pair(x[:, 3:], second, swapped=True)
    for expected, *parts in zip(whole, begin, rest, strict=True):
        np.testing.assert_allclose(jnp.concatenate(parts, axis=1), expected, atol=1e-6)
    assert set(second.caches) == {"a", "b"}


def test_caches_of_another_network_are_refused():
    pair, x = _Pair(), _clip(3)
    first = StreamCache(pair, None)
    pair(x, first)
    caches = first.caches
    lacking = StreamCache(pair, {"a": caches["a"]})
    with pytest.raises(ValueError, match="no cache for layer b"):
        pair(x, lacking)
    unread = StreamCache(pair, caches | {"c": caches["a"]})
    pair(x, unread)
    with pytest.raises(ValueError, match="not used \\(c"):
        _ = unread.caches
    with pytest.raises(ValueError, match="not part of the network"):
        _Pair().a(x, StreamCache(pair, None))
    twice = StreamCache(pair, None)
    pair.a(x, twice)
    with pytest.raises(ValueError, match="runs twice"):
        pair.a(x, twice)
