"""Heads: likelihoods against enumeration of all codes, and samples against likelihoods."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.models.prior.heads import Draw, make_head
from tests.models.prior.tiny import BITS, config

ALL = jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=BITS)))  # (16, bits)


@functools.cache
def head_of(name):
    head = make_head(config("raster", head=name), rngs=nnx.Rngs(1))
    # Biases and modulations start at zero, which would hide mistakes.
    for number, (_, variable) in enumerate(nnx.to_flat_state(nnx.state(head, nnx.Param))):
        noise = jax.random.normal(jax.random.key(number), variable.shape)
        variable[...] = variable[...] + 0.2 * noise
    return head


def draw(states, keys, **changes):
    values = dict(hidden=(states,), guidance=1.0, temperature=1.0, top_p=1.0, keys=keys)
    return Draw(**(values | changes))


@nnx.jit
def sampled(head, draw):
    return head.sample(draw)


@nnx.jit
def predicted(head, hidden):
    return head.predict(hidden)


@nnx.jit
def chances(head, hidden):
    """Probability of each of all codes at one hidden state (d,)."""
    many = jnp.broadcast_to(hidden, (1, len(ALL), len(hidden)))
    return jnp.exp(-head.nats(many, ALL[None], jax.random.key(0)))[0]


@pytest.mark.parametrize("name", ["bits", "factorised", "softmax"])
def test_likelihoods_are_exact(name):
    head = head_of(name)
    hidden = jax.random.normal(jax.random.key(7), (32,))
    found = chances(head, hidden)
    assert abs(float(found.sum()) - 1) < 1e-5
    if name == "bits":
        logits = np.asarray(head.logits(hidden), np.float64)
        ones = 1 / (1 + np.exp(-logits))
        by_hand = np.prod(np.where(np.asarray(ALL) > 0, ones, 1 - ones), axis=1)
        np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    # Samples have these frequencies, and the log-probability that they report is that of `nats`.
    rows = 4000
    keys = jax.vmap(jax.random.key)(jnp.arange(rows))
    many = jnp.broadcast_to(hidden, (rows, 1, 32))
    codes, log_chance = sampled(head, draw(many, keys))
    numbers = jnp.argmax((codes[:, 0, None] == ALL).all(-1), axis=-1)
    np.testing.assert_allclose(jnp.exp(log_chance[:, 0]), found[numbers], rtol=1e-4)
    counts = np.bincount(numbers, minlength=len(ALL))
    error = (counts - rows * found) / np.sqrt(rows * found * (1 - found) + 1)
    assert np.abs(error).max() < 4.5
    best = predicted(head, hidden[None, None])[0, 0]
    if name != "factorised":  # Greedy sub-tokens need not be the most likely code.
        np.testing.assert_array_equal(best, ALL[jnp.argmax(found)])


def test_masked_bits_estimate_the_bound_of_all_orders():
    """The estimate's mean is the mean over all orders of unmasking, which is brute force here."""
    head = head_of("mbm")
    hidden, code = jax.random.normal(jax.random.key(3), (32,)), ALL[5]

    @jax.jit
    def bit_nats(seen):
        logits = head._logits(hidden[None, None], seen[None, None])[0, 0]
        return -jax.nn.log_sigmoid(code * logits)

    orders = list(itertools.permutations(range(BITS)))
    table = {}
    for size in range(BITS):
        for known in itertools.combinations(range(BITS), size):
            seen = jnp.zeros(BITS).at[jnp.asarray(known, int)].set(code[jnp.asarray(known, int)])
            table[known] = np.asarray(bit_nats(seen))
    totals = [
        sum(table[tuple(sorted(order[:i]))][order[i]] for i in range(BITS)) for order in orders
    ]
    rows = 8000
    many, codes = jnp.broadcast_to(hidden, (rows, 1, 32)), jnp.broadcast_to(code, (rows, 1, BITS))
    found = np.asarray(nnx.jit(lambda h, x, c: h.nats(x, c, jax.random.key(0)))(head, many, codes))
    assert abs(found.mean() - np.mean(totals)) < 4 * found.std() / rows**0.5
    keys = jax.vmap(jax.random.key)(jnp.arange(8))
    drawn, _ = sampled(head, draw(many[:8], keys))
    assert set(np.unique(drawn)) == {-1.0, 1.0}


@pytest.mark.parametrize("name", ["bits", "factorised", "mbm", "softmax"])
def test_a_rows_draw_depends_on_its_key_alone(name):
    head = head_of(name)
    hidden = jax.random.normal(jax.random.key(2), (3, 4, 32))
    keys = jax.vmap(jax.random.key)(jnp.array([5, 6, 7]))
    together, _ = sampled(head, draw(hidden, keys))
    alone, _ = sampled(head, draw(hidden[1:2], keys[1:2]))
    np.testing.assert_array_equal(together[1:2], alone)


@pytest.mark.parametrize("name", ["bits", "factorised", "softmax"])
def test_cold_and_certain_draws_are_the_prediction(name):
    head = head_of(name)
    hidden = jax.random.normal(jax.random.key(2), (3, 4, 32))
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    for changes in ({"temperature": 0.0}, {"top_p": 1e-6}):
        np.testing.assert_array_equal(
            sampled(head, draw(hidden, keys, **changes))[0], predicted(head, hidden)
        )


def test_guidance_moves_logits_away_from_the_unconditional_ones():
    head = head_of("bits")
    hidden = jax.random.normal(jax.random.key(2), (2, 1, 4, 32))
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    pair = draw(hidden[0], keys, hidden=(hidden[0], hidden[1]), guidance=3.0)
    c, u = head._logits(hidden[0]), head._logits(hidden[1])
    np.testing.assert_allclose(pair.mixed([c, u]), u + 3 * (c - u))
    same = draw(hidden[0], keys, hidden=(hidden[0], hidden[1]), guidance=1.0)
    np.testing.assert_array_equal(sampled(head, same)[0], sampled(head, draw(hidden[0], keys))[0])
