"""Differences between rate-distortion curves (Bjontegaard, VCEG-M33), with monotone cubics.

A curve is any number of (rate, quality) points. The logarithm of the rate is interpolated over
quality by a piecewise cubic that keeps monotony (PCHIP), as later revisions of the measure do,
and the mean difference is taken over the qualities that both curves reach.
"""

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

Points = Sequence[tuple[float, float]]


def frontier(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """(rate, quality), both rising: points that cost more without being better are left out."""
    rates: list[float] = []
    qualities: list[float] = []
    for rate, quality in sorted((r, q) for r, q in points if r > 0 and np.isfinite(q)):
        if not qualities or quality > qualities[-1]:
            if rates and rate == rates[-1]:
                rates.pop(), qualities.pop()
            rates.append(rate)
            qualities.append(quality)
    return np.array(rates, np.float64), np.array(qualities, np.float64)


def bd_rate(anchor: Points, test: Points) -> float | None:
    """Mean difference in rate of `test` from `anchor` at equal quality, in percent.

    Negative: the test needs fewer bits. None where a curve has fewer than two points, or no
    quality is reached by both.
    """
    curves = [frontier(anchor), frontier(test)]
    if min(len(rates) for rates, _ in curves) < 2:
        return None
    low = max(qualities[0] for _, qualities in curves)
    high = min(qualities[-1] for _, qualities in curves)
    if high <= low:
        return None
    means = []
    for rates, qualities in curves:
        curve = PchipInterpolator(qualities, np.log(rates))
        means.append(float(curve.integrate(low, high)) / (high - low))
    return 100.0 * float(np.expm1(means[1] - means[0]))


def rate_at(curve: Points, quality: float) -> float | None:
    """The rate at which a curve reaches a quality; None outside of it."""
    rates, qualities = frontier(curve)
    if len(rates) < 2 or not qualities[0] <= quality <= qualities[-1]:
        return None
    return float(np.exp(PchipInterpolator(qualities, np.log(rates))(quality)))
