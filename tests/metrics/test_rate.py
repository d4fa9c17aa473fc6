"""Rates, and differences of rate-distortion curves that are known by hand."""

import pytest

from pyratok_jax.metrics.rate import bd_rate, bits_per_pixel, frontier, rate_at, token_count

CURVE = [(0.01, 27.0), (0.03, 30.5), (0.08, 33.0), (0.2, 36.5), (0.5, 38.0)]


def test_rate_of_the_published_grids():
    grids = ((17, 8, 8), (9, 16, 16), (5, 16, 16), (5, 32, 32))
    tokens = token_count(grids)
    assert tokens == 9792
    assert bits_per_pixel(tokens, 16, 17, 256, 256) == pytest.approx(0.1406, abs=1e-4)


@pytest.mark.parametrize("factor", [0.8, 1.0, 2.5])
def test_a_constant_factor_in_rate_is_the_bd_rate(factor):
    test = [(factor * rate, quality) for rate, quality in CURVE]
    assert bd_rate(CURVE, test) == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_a_constant_gain_in_quality_on_a_straight_curve():
    # Doubling the rate brings 3 dB, so 3 dB more at equal rate are half the rate.
    anchor = [(0.1 * 2**n, 30.0 + 3 * n) for n in range(5)]
    better = [(rate, quality + 3) for rate, quality in anchor]
    assert bd_rate(anchor, better) == pytest.approx(-50, abs=1e-9)
    assert bd_rate(better, anchor) == pytest.approx(100, abs=1e-9)
    # A part of the curve, measured elsewhere on the same line, makes no difference.
    assert bd_rate(anchor, [(0.1 * 2**1.5, 34.5), (0.1 * 2**2.5, 37.5)]) == pytest.approx(0)


def test_no_common_quality_or_one_point_has_no_bd_rate():
    assert bd_rate(CURVE, [(rate, quality + 20) for rate, quality in CURVE]) is None
    assert bd_rate(CURVE, CURVE[:1]) is None
    assert rate_at(CURVE, 30.5) == pytest.approx(0.03)
    between = rate_at(CURVE, 32)
    assert between is not None and 0.03 < between < 0.08
    assert rate_at(CURVE, 26.9) is None and rate_at(CURVE, 38.1) is None


def test_points_that_cost_more_and_show_less_are_left_out():
    rates, qualities = frontier([(0.2, 33), (0.1, 30), (0.15, 29), (0.1, 31), (0.3, 33)])
    assert rates.tolist() == [0.1, 0.2] and qualities.tolist() == [31, 33]
