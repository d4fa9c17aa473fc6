"""Codebook usage against hand-counted codes."""

import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.metrics.training_usage import code_counts, distinct_share, usage, usage_metrics
from pyratok_jax.models.pyratok.lfq import ids_to_bits


def codes(ids, bits=3):
    return ids_to_bits(jnp.asarray(ids, jnp.uint32), bits)


def test_counts_add_up_over_batches():
    first, second = code_counts(codes([[0, 7], [7, 2]])), code_counts(codes([7]))
    assert first.tolist() == [1, 0, 1, 0, 0, 0, 0, 2]
    assert (first + second).tolist() == [1, 0, 1, 0, 0, 0, 0, 3]


def test_figures_of_known_counts():
    found = usage(jnp.array([2, 2, 0, 4, 0, 0, 0, 0]), vocabulary=6)
    assert float(found.utilisation) == 0.5 and int(found.dead) == 3
    # Shares 1/4, 1/4, 1/2 have 1.5 bits of entropy.
    np.testing.assert_allclose(found.perplexity, 2**1.5, rtol=1e-6)


def test_all_codes_once_is_full_use():
    found = usage(code_counts(codes(range(8))))
    assert (float(found.utilisation), int(found.dead)) == (1.0, 0)
    np.testing.assert_allclose(found.perplexity, 8.0, rtol=1e-6)


def test_nothing_counted_is_no_use():
    found = usage(jnp.zeros(8, jnp.int32))
    assert (float(found.utilisation), int(found.dead)) == (0.0, 8)


def test_too_many_bits_are_refused():
    with pytest.raises(ValueError, match="at most 24 bits"):
        code_counts(jnp.ones((1, 25)))


def test_distinct_codes_as_a_share_of_what_could_be():
    # Three tokens, two codes; then nine tokens of three bits, of which eight could differ.
    np.testing.assert_allclose(distinct_share(codes([5, 1, 5])), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(distinct_share(codes([0, 1, 2, 3, 0, 0, 0, 0, 0])), 0.5)
    np.testing.assert_allclose(distinct_share(codes([0, 1, 2, 2, 1, 1]), 4), 3 / 4)
    wide = codes([2**30, 2**30 + 1, 7, 7], bits=31)
    np.testing.assert_allclose(distinct_share(wide), 3 / 4)


def test_metrics_of_levels():
    found = usage_metrics([codes([[[[0, 0, 7, 7]]]]), codes([[[[1, 2**20]]]], bits=21)])
    assert float(found["perplexity/level_1"]) == pytest.approx(2.0)
    assert float(found["dead/level_1"]) == 6 and float(found["utilisation/level_1"]) == 0.25
    assert float(found["distinct/level_2"]) == 1.0 and "dead/level_2" not in found
