"""Entropies against sums over all codes in float64, gradients at large logits, many devices."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyratok_jax.losses.codebook import batch_entropy, bit_logits, mean_distribution, token_entropy
from tests.processes import run_script


def all_codes(bits: int, vocabulary: int) -> np.ndarray:
    ids = np.arange(vocabulary)
    return np.where((ids[:, None] >> np.arange(bits)[::-1]) & 1, 1.0, -1.0)


def brute_force(z: np.ndarray, temperature: float, vocabulary: int | None = None):
    """Token entropies, batch entropy and mean distribution, by listing every valid code."""
    z = z.astype(np.float64)
    codes = all_codes(z.shape[1], vocabulary or 2 ** z.shape[1])
    scores = 2.0 * temperature * z @ codes.T
    scores -= scores.max(axis=1, keepdims=True)
    p = np.exp(scores)
    p /= p.sum(axis=1, keepdims=True)
    mean = p.mean(axis=0)

    def entropy(p):
        return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)

    return entropy(p), entropy(mean), mean


def logits(n, bits, scale=1.0, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, bits)) * scale).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def entropies(z, temperature=0.25, vocabulary=None):
    """Ours: token entropies, batch entropy and mean distribution, compiled as one."""
    a = bit_logits(z, temperature)
    shared = token_entropy(a, vocabulary), batch_entropy(a, vocabulary)
    return *shared, mean_distribution(a, vocabulary)


@pytest.mark.parametrize("temperature", [0.25, 1.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_entropies_equal_the_sum_over_all_codes_at_8_bits(scale, temperature):
    z = logits(40, 8, scale)
    token, batch, mean = brute_force(z, temperature)
    found = entropies(z, temperature)
    np.testing.assert_allclose(found[0], token, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], batch, rtol=1e-5)
    np.testing.assert_allclose(found[2].reshape(-1), mean, atol=1e-6)


@pytest.mark.parametrize("vocabulary", [None, 48000])
def test_entropies_equal_a_float64_reference_at_16_bits(vocabulary):
    z = logits(60, 16, 2.0)
    token, batch, _ = brute_force(z, 0.25, vocabulary)
    found = entropies(z, 0.25, vocabulary)
    np.testing.assert_allclose(found[0], token, rtol=2e-5)
    np.testing.assert_allclose(found[1], batch, rtol=2e-5)


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(1, 8), data=st.data(), seed=st.integers(0, 10**6))
def test_a_restricted_vocabulary_equals_the_sum_over_its_valid_codes(bits, data, seed):
    vocabulary = data.draw(st.integers(1, 2**bits))
    z = logits(7, bits, 3.0, seed)
    token, batch, mean = brute_force(z, 0.25, vocabulary)
    of_tokens, of_batch, distribution = entropies(z, 0.25, vocabulary)
    np.testing.assert_allclose(of_tokens, token, rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(of_batch, batch, rtol=1e-4, atol=2e-6)
    found = np.asarray(distribution).reshape(-1)
    np.testing.assert_allclose(found[:vocabulary], mean, atol=1e-5)
    assert not found[vocabulary:].any()


def test_logits_far_outside_the_valid_codes_stay_finite():
    z = jnp.full((3, 16), 200.0)  # points at id 65535, far from the last valid one
    a = bit_logits(z, 0.25)
    token, batch, _ = brute_force(np.asarray(z), 0.25, 48000)
    np.testing.assert_allclose(token_entropy(a, 48000), token, atol=1e-5)
    for entropy in (token_entropy, batch_entropy):
        gradient = jax.jit(jax.grad(lambda a, f=entropy: jnp.sum(f(a, 48000))))(a)
        assert np.isfinite(gradient).all()
    assert np.isfinite(batch_entropy(a, 48000))


token_gradient = jax.jit(jax.grad(lambda z: jnp.sum(token_entropy(bit_logits(z, 0.25)))))
batch_gradient = jax.jit(jax.grad(lambda z: batch_entropy(bit_logits(z, 0.25))))


@pytest.mark.parametrize("size", [0.07, 1.0, 10.0, 30.0, 50.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_token_entropy_has_a_true_gradient_up_to_50(size, sign):
    """-4 tau a p (1 - p) per bit, in float64."""
    z = np.full((1, 16), sign * size, np.float32)
    gradient = token_gradient(z)
    a = z.astype(np.float64)
    expected = -a * np.exp(-np.abs(a)) / (1 + np.exp(-np.abs(a))) ** 2
    assert np.all(np.asarray(gradient) != 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


@pytest.mark.parametrize("size", [0.01, 1.0, 10.0, 30.0, 50.0])
def test_batch_entropy_has_a_finite_gradient_towards_unused_codes(size):
    """All tokens on one code: lowering any logit raises the entropy of the batch."""
    z = jnp.full((4, 16), size).at[0, 0].add(0.01)
    gradient = batch_gradient(z)
    assert np.isfinite(gradient).all() and np.all(np.asarray(gradient) < 0)


def test_batch_entropy_gradient_equals_finite_differences_in_float64():
    z = logits(5, 6, 1.5)
    gradient = batch_gradient(z)
    for i, j in ((0, 0), (2, 3), (4, 5)):
        step = np.zeros_like(z, np.float64)
        step[i, j] = 1e-5
        up, down = (brute_force(z + s * step, 0.25)[1] for s in (1, -1))
        np.testing.assert_allclose(gradient[i, j], (up - down) / 2e-5, rtol=1e-3, atol=1e-6)


def test_a_uniform_batch_has_the_largest_entropy():
    codes = jnp.asarray(all_codes(6, 64) * 40.0, jnp.float32)
    np.testing.assert_allclose(batch_entropy(bit_logits(codes, 1.0)), 6 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(token_entropy(bit_logits(codes, 1.0)), 0.0, atol=1e-6)


def test_too_many_bits_for_a_batch_entropy_are_refused():
    with pytest.raises(ValueError, match="24 bits"):
        batch_entropy(jnp.zeros((1, 25)))


@pytest.mark.process
def test_the_loss_is_the_same_on_1_and_on_8_devices():
    one, eight = json.loads(run_script("sharded_entropy", devices=8).stdout)
    # The term is a difference of two entropies of about 10.
    np.testing.assert_allclose(eight, one, rtol=1e-5)
