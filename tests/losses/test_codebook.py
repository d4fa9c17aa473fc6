"""Codebook terms 1 to 4: values by hand or by listing all codes, and what each one trains."""

import jax
import jax.numpy as jnp
import numpy as np

from pyratok_jax.losses import codebook as C
from pyratok_jax.models.pyratok.quantizers.base import sign_commitment
from tests.losses.tiny import BITS

TAU = 0.25


def logits(*shape, seed=0, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


def code_distribution(z):
    """p(c) over all codes, float64: exp(2 tau <z, c>), normalised."""
    bits = z.shape[-1]
    codes = np.where((np.arange(2**bits)[:, None] >> np.arange(bits)[::-1]) & 1, 1.0, -1.0)
    p = np.exp(2 * TAU * np.asarray(z, np.float64) @ codes.T)
    return p / p.sum(axis=-1, keepdims=True)


def kl(p, q):
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)


def test_commitment_by_hand_and_its_gradient_ignores_the_code():
    z, q = jnp.array([[0.5, -2.0]]), jnp.array([[1.0, -1.0]])
    assert float(sign_commitment(z, q)) == (0.25 + 1.0) / 2
    gz, gq = jax.grad(sign_commitment, argnums=(0, 1))(z, q)
    assert gz.tolist() == [[-0.5, -1.0]] and not gq.any()


def test_entropy_is_token_less_gamma_batch():
    z = logits(4, 5, BITS)
    p = code_distribution(z).reshape(-1, 2**BITS)
    token, batch = (-np.sum(x * np.log(x), axis=-1) for x in (p, p.mean(axis=0)))
    value, parts = C.entropy(z, temperature=TAU, gamma=0.7)
    np.testing.assert_allclose(value, token.mean() - 0.7 * batch, rtol=1e-5)
    np.testing.assert_allclose(parts["batch_entropy"], batch, rtol=1e-5)


def test_hierarchy_on_one_grid_is_the_kl_between_code_distributions():
    z, previous = logits(2, 2, 2, 2, 4), logits(2, 2, 2, 2, 4, seed=1)
    expected = kl(code_distribution(z), code_distribution(previous)).mean()
    np.testing.assert_allclose(C.hierarchy(z, previous, temperature=TAU), expected, rtol=1e-5)


def test_hierarchy_averages_a_finer_and_copies_a_coarser_level():
    z, previous = logits(1, 2, 1, 2, 3), logits(1, 3, 2, 1, 3, seed=1)
    p, before = (jax.nn.sigmoid(x) for x in (z, previous))
    # Time: frame 0 alone, then frames 1 and 2. Rows: two into one. Columns: one into two.
    first, rest = before[:, :1].mean(2), before[:, 1:].mean((1, 2))[:, None]
    mean = np.repeat(np.concatenate([first, rest], axis=1)[:, :, None], 2, axis=3)
    parts = p * np.log(p / mean) + (1 - p) * np.log((1 - p) / (1 - mean))
    expected = parts.sum(-1).mean()
    np.testing.assert_allclose(C.hierarchy(z, previous, temperature=TAU), expected, rtol=1e-5)


def test_hierarchy_trains_the_finer_level_alone_and_is_finite_at_huge_logits():
    z, previous = logits(1, 2, 1, 2, 3, scale=50), logits(1, 3, 2, 1, 3, seed=1, scale=300)
    loss = lambda z, p: C.hierarchy(z, p, temperature=1.0)  # noqa: E731
    value, (gz, gp) = jax.value_and_grad(loss, argnums=(0, 1))(z, previous)
    assert np.isfinite(value) and np.isfinite(gz).all() and gz.any() and not gp.any()


def test_text_alignment_is_the_kl_from_the_predicted_bits_of_captioned_clips():
    z, prior = logits(3, 1, 2, 2, 4), logits(3, 1, 2, 2, 4, seed=1)
    # The prior's logits are logits of bits: with tau = 1/4 the same form as z.
    each = kl(code_distribution(z), code_distribution(prior)).mean((1, 2, 3))
    captioned = jnp.array([True, False, True])
    value = C.text_alignment(z, prior, captioned, temperature=TAU)
    np.testing.assert_allclose(value, (each[0] + each[2]) / 2, rtol=1e-5)
    loss = lambda z, p: C.text_alignment(z, p, captioned, temperature=TAU)  # noqa: E731
    gradients = jax.grad(loss, argnums=(0, 1))(z, prior)
    for g in gradients:
        assert g[0].any() and not g[1].any() and g[2].any()


def test_no_caption_at_all_gives_0_and_no_gradient():
    z, none = logits(2, 1, 1, 1, 4), jnp.zeros(2, bool)
    loss = lambda z: C.text_alignment(z, z[::-1], none, temperature=TAU)  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(z)
    assert float(value) == 0 and not gradient.any()


def test_hierarchy_without_the_stop_gradient_trains_both_levels():
    z, previous = logits(1, 2, 2, 2, 3), logits(1, 2, 2, 2, 3, seed=1)
    loss = lambda p: C.hierarchy(z, p, temperature=TAU, stop_gradient=False)  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(previous)
    assert gradient.any()
    np.testing.assert_allclose(value, C.hierarchy(z, previous, temperature=TAU), rtol=1e-6)
