"""Rates of tokens and codecs, and differences between rate-distortion curves.

Rate is the bits of all tokens over true frames x height x width. Differences are Bjontegaard's
(VCEG-M33): a curve is any number of (rate, quality) points; the logarithm of the rate is
interpolated over quality by a piecewise cubic that keeps monotony (PCHIP), as later revisions of
the measure do, and the mean difference is taken over the qualities that both curves reach.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

from pyratok_jax.io import Json
from pyratok_jax.metrics.image import mean_quality

Points = Sequence[tuple[float, float]]
RAW, CODED = "raw", "coded"
# What was measured on a clip: tokens, a codec at a fixed CRF, a codec at the tokens' rate, 4:2:0.
TOKENS, CODEC, MATCHED, CONVERSION = "tokens", "codec", "matched", "conversion"


def token_count(grids: Iterable[Sequence[int]]) -> int:
    """Number of tokens of token grids (t, h, w), all levels together."""
    return int(sum(np.prod(grid, dtype=np.int64) for grid in grids))


def bits_per_pixel(tokens: int, bits: int, frames: int, height: int, width: int) -> float:
    """Rate of `tokens` of `bits` each over the true (unpadded) frames and size."""
    return tokens * bits / (frames * height * width)


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


def merge(
    measurements: Sequence[Sequence[Mapping[str, Json]]], pixels: Sequence[int]
) -> list[dict]:
    """One row per measurement that all clips share, in the first clip's order.

    The rate is all bits over all pixels; quality is the mean over clips; a CRF found by bisection
    is the mean of those found.

    Args:
        measurements: of each clip; entries with `key` (what identifies it), `bits` by kind of
            rate, `quality`, and `crf` where there is one.
        pixels: frames x height x width of each clip.
    """
    by_key: dict[tuple, list[tuple[Mapping[str, Json], int]]] = {}
    for entries, size in zip(measurements, pixels, strict=True):
        for entry in entries:
            by_key.setdefault(tuple(entry["key"]), []).append((entry, size))
    rows = []
    for key, found in by_key.items():
        if len(found) < len(measurements):
            continue
        total = sum(size for _, size in found)
        rates = {
            kind: sum(entry["bits"][kind] for entry, _ in found) / total
            for kind in found[0][0]["bits"]
            if all(kind in entry["bits"] for entry, _ in found)
        }
        crfs = [entry["crf"] for entry, _ in found if entry.get("crf") is not None]
        row: dict[str, Json] = {"key": list(key), "bpp": rates}
        row["crf"] = sum(crfs) / len(crfs) if crfs else None
        rows.append(row | mean_quality([entry["quality"] for entry, _ in found]))
    return rows


def curves(
    rows: Sequence[Mapping[str, Json]], quality: str = "psnr"
) -> dict[str, Sequence[tuple[float, float]]]:
    """(bpp, quality) points by name: ours, raw and coded, then the codecs."""
    found: dict[str, list[tuple[float, float]]] = {}
    for kind in (RAW, CODED):
        points = [
            (row["bpp"][kind], row[quality])
            for row in rows
            if row["key"][0] == TOKENS and kind in row["bpp"] and row.get(quality) is not None
        ]
        if points:
            found[ours(kind)] = points
    for row in rows:
        if row["key"][0] == CODEC and row.get(quality) is not None:
            found.setdefault(row["key"][1], []).append((row["bpp"][RAW], row[quality]))
    return {name: sorted(points) for name, points in found.items()}


def ours(kind: str) -> str:
    """How a curve of tokens is called."""
    return f"PyraTok ({kind})"


def compare(series: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Json]:
    """Every curve against every codec: BD-rate, and the rate for each single point's quality.

    Returns:
        `bd_rate` (percent, None without two points or a common range of quality) and
        `rate_at_equal_psnr` (percent more bits than the codec takes for our PSNR, mean over our
        points that its curve reaches), both by curve and codec.
    """
    codecs = [name for name in series if not name.startswith("PyraTok")]
    differences: dict[str, dict[str, float | None]] = {}
    equal: dict[str, dict[str, float | None]] = {}
    for name, points in series.items():
        others = [codec for codec in codecs if codec != name]
        differences[name] = {codec: bd_rate(series[codec], points) for codec in others}
        if name not in codecs:
            equal[name] = {codec: _more_bits(points, series[codec]) for codec in others}
    return {"bd_rate": differences, "rate_at_equal_psnr": equal}


def _more_bits(
    points: Sequence[tuple[float, float]], curve: Sequence[tuple[float, float]]
) -> float | None:
    known = [(rate, rate_at(curve, quality)) for rate, quality in points]
    shares = [rate / other for rate, other in known if other]
    return 100.0 * (sum(shares) / len(shares) - 1.0) if shares else None
