"""Lookup-free quantisation against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyratok_jax.models.pyratok import lfq


@settings(max_examples=12, deadline=None)
@given(bits=st.integers(1, 32), seed=st.integers(0, 2**31 - 1))
def test_ids_and_bits_are_inverse(bits, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 2**bits, size=(3, 5), dtype=np.uint64).astype(np.uint32)
    codes = lfq.ids_to_bits(jnp.asarray(ids), bits)
    assert set(np.unique(codes)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(lfq.bits_to_ids(codes), ids)


def test_first_bit_is_the_most_significant():
    codes = jnp.array([[1.0, -1.0, -1.0, 1.0], [-1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
    assert lfq.bits_to_ids(codes).tolist() == [9, 0, 15]


def test_sign_of_zero_is_plus_one():
    assert lfq.quantize(jnp.array([0.0, -0.0, -1e-30]))[:2].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("vocabulary", [None, 48000])
def test_codes_are_exact_and_gradient_passes_straight_through(vocabulary):
    z = jax.random.normal(jax.random.key(0), (50, 16)) * 17.3
    q, pullback = jax.vjp(lambda z: lfq.quantize(z, vocabulary), z)
    assert set(np.unique(q)) == {-1.0, 1.0}
    cotangent = jax.random.normal(jax.random.key(1), z.shape)
    np.testing.assert_array_equal(pullback(cotangent)[0], cotangent)


@pytest.mark.parametrize("vocabulary", [None, 48000])
def test_under_tanh_the_codes_are_the_same_and_settled_bits_have_no_gradient(vocabulary):
    z = jax.random.normal(jax.random.key(0), (50, 16)) * 3.0
    q, pullback = jax.vjp(lambda z: lfq.quantize(z, vocabulary, "tanh"), z)
    np.testing.assert_array_equal(q, lfq.quantize(z, vocabulary))
    gradient = pullback(jnp.ones_like(z))[0]
    np.testing.assert_allclose(gradient, 1.0 / jnp.cosh(z) ** 2, rtol=1e-4, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(bits=st.integers(1, 9), data=st.data(), seed=st.integers(0, 2**31 - 1))
def test_nearest_valid_code_is_the_best_of_all(bits, data, seed):
    vocabulary = data.draw(st.integers(1, 2**bits))
    z = np.random.default_rng(seed).normal(size=(20, bits)).astype(np.float32)
    table = np.asarray(lfq.ids_to_bits(jnp.arange(vocabulary, dtype=jnp.uint32), bits))
    best = (z @ table.T).max(axis=1)
    code = np.asarray(lfq.nearest_valid(jnp.asarray(z), vocabulary))
    assert (np.asarray(lfq.bits_to_ids(jnp.asarray(code))) < vocabulary).all()
    np.testing.assert_allclose((code * z).sum(axis=1), best, rtol=1e-5, atol=1e-6)


def test_a_full_vocabulary_needs_no_search():
    z = jax.random.normal(jax.random.key(0), (100, 8))
    np.testing.assert_array_equal(lfq.nearest_valid(z, 256), lfq.hard_sign(z))


@pytest.mark.parametrize("vocabulary", [0, 257])
def test_an_impossible_vocabulary_is_refused(vocabulary):
    with pytest.raises(ValueError, match="1 .. 256"):
        lfq.nearest_valid(jnp.zeros((1, 8)), vocabulary)
