"""Drift from the frozen posterior: closed form against hand values and sampling."""

import jax
import jax.numpy as jnp
import numpy as np

from pyratok_jax.losses.features import gaussian_kl


def test_known_values():
    zero, one = jnp.zeros(3), jnp.ones(3)
    assert float(gaussian_kl(zero, zero, zero, zero)) == 0
    np.testing.assert_allclose(gaussian_kl(2 * one, zero, zero, zero), 2.0)
    # var 4 against var 1: (0 - log 4 + 4 - 1) / 2.
    np.testing.assert_allclose(
        gaussian_kl(zero, jnp.log(4.0) * one, zero, zero), (3 - np.log(4)) / 2, rtol=1e-6
    )


def test_equals_the_expectation_of_the_log_ratio():
    mean, logvar, frozen_mean, frozen_logvar = 0.7, -0.5, -0.2, 0.4
    x = mean + np.exp(logvar / 2) * np.random.default_rng(0).normal(size=400_000)

    def log_density(m, v):
        return -0.5 * (v + (x - m) ** 2 / np.exp(v))

    expected = np.mean(log_density(mean, logvar) - log_density(frozen_mean, frozen_logvar))
    values = (jnp.full(1, v) for v in (mean, logvar, frozen_mean, frozen_logvar))
    np.testing.assert_allclose(gaussian_kl(*values), expected, rtol=1e-2)


def test_only_the_adapted_side_learns():
    keys = jax.random.split(jax.random.key(0), 4)
    values = [jax.random.normal(key, (5,)) for key in keys]
    gradients = jax.grad(gaussian_kl, argnums=(0, 1, 2, 3))(*values)
    assert [bool(g.any()) for g in gradients] == [True, True, False, False]


def test_narrow_posteriors_count_as_the_floor():
    mean, narrow = jnp.ones(2), jnp.full(2, -30.0)
    value = gaussian_kl(mean, narrow, 0 * mean, narrow, smallest_logvar=-6.0)
    np.testing.assert_allclose(value, 0.5 * np.exp(6.0), rtol=1e-6)
