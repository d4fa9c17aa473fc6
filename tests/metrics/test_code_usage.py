"""Codebook usage against hand-counted codes: on the host, in tables, and on device."""

import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.metrics.code_usage import (
    CodeUsage,
    code_counts,
    code_usage,
    count_codes,
    distinct_share,
    usage,
    usage_metrics,
    usage_of_counts,
)
from pyratok_jax.models.pyratok.lfq import ids_to_bits


def codes(ids, bits=3):
    return ids_to_bits(jnp.asarray(ids, jnp.uint32), bits)


def test_counts_add_up_over_batches():
    first, second = code_counts(codes([[0, 7], [7, 2]])), code_counts(codes([7]))
    assert first.tolist() == [1, 0, 1, 0, 0, 0, 0, 2]
    assert (first + second).tolist() == [1, 0, 1, 0, 0, 0, 0, 3]


def test_figures_of_known_counts():
    found = usage_of_counts(jnp.array([2, 2, 0, 4, 0, 0, 0, 0]), vocabulary=6)
    assert float(found.utilisation) == 0.5 and int(found.dead) == 3
    # Shares 1/4, 1/4, 1/2 have 1.5 bits of entropy.
    np.testing.assert_allclose(found.perplexity, 2**1.5, rtol=1e-6)


def test_all_codes_once_is_full_use():
    found = usage_of_counts(code_counts(codes(range(8))))
    assert (float(found.utilisation), int(found.dead)) == (1.0, 0)
    np.testing.assert_allclose(found.perplexity, 8.0, rtol=1e-6)


def test_nothing_counted_is_no_use():
    found = usage_of_counts(jnp.zeros(8, jnp.int32))
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


def test_code_usage_by_hand():
    first = (np.array([[0, 0, 1]], np.uint32), np.array([7], np.uint32))
    second = (np.array([[1, 3, 3]], np.uint32), np.array([7], np.uint32))
    one, two = code_usage([first, second], vocabulary=8)
    assert (one["level"], one["tokens"], one["distinct"], one["dead"]) == (1, 6, 3, 5)
    assert one["utilisation"] == pytest.approx(3 / 8)
    assert one["perplexity"] == pytest.approx(3.0)  # Three codes, a third of the tokens each.
    assert two == {
        "level": 2,
        "tokens": 2,
        "distinct": 1,
        "utilisation": 1 / 8,
        "perplexity": 1.0,
        "dead": 7,
    }


def test_merged_code_usage_is_that_of_all_clips():
    rng = np.random.default_rng(0)
    clips = [tuple(rng.integers(0, 9, (2, 3, 4)) for _ in range(2)) for _ in range(3)]
    first, second = CodeUsage(2, 16), CodeUsage(2, 16)
    first.add(clips[0])
    second.add(clips[1])
    second.add(clips[2])
    first.merge(second)
    assert first.summary() == code_usage(clips, 16)


def test_code_usage_takes_ids_of_32_bits_and_refuses_missing_levels():
    top = np.array([2**32 - 1, 0], np.uint32)
    (level,) = code_usage([(top,)], vocabulary=2**32)
    assert level["distinct"] == 2 and level["perplexity"] == pytest.approx(2.0)
    with pytest.raises(ValueError, match="levels"):
        CodeUsage(2, 8).add((top,))
    with pytest.raises(ValueError, match="no clip"):
        code_usage([], 8)


def test_host_table_and_device_agree():
    ids = np.random.default_rng(0).integers(0, 50, 300).astype(np.uint32)
    (host,) = code_usage([(ids,)], 64)
    table = np.zeros((1, 64), np.int64)
    count_codes([ids], table, 6)
    table = usage(table[0], 64)
    device = usage_of_counts(code_counts(codes(ids, bits=6)))
    assert host["tokens"] == table["tokens"] == 300
    assert host["distinct"] == table["used"] == 64 - host["dead"] == 64 - int(device.dead)
    assert host["utilisation"] == table["utilisation"] == float(device.utilisation)
    assert table["perplexity"] == pytest.approx(host["perplexity"], rel=1e-12)
    assert float(device.perplexity) == pytest.approx(host["perplexity"], rel=1e-5)
