"""Named measures of consistency over time and of motion, which need no weights.

A frozen clip has perfect consistency: none of these says anything without the measures of motion
beside it. The "TC" of published tables (MotionAura, PyraTok) is defined in no paper or code that
could be found, and is not among them.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

_SIDE = 48  # Short side at which motion is estimated.
_BLOCK, _REACH = 6, 4
# VBench counts a pair of frames as moving where the 5 % fastest flows exceed 6 pixels at 256, and a
# clip as dynamic with 4 such pairs in 16 frames; there the flow is RAFT's.
_FAST, _TOP, _PAIRS = 6 / 256, 0.05, 4 / 16

PROTOCOL: dict[str, str] = {
    "flicker": "mean absolute difference of neighbouring frames, 0 .. 1 (VBench's temporal "
    "flickering is 1 - this, of static prompts)",
    "smoothness": "1 - mean absolute difference of a frame from the mean of its neighbours",
    "warping_error": "mean squared difference of a frame from its predecessor moved by the "
    f"estimated motion, 0 .. 1, without the border; blocks of {_BLOCK} at a short side of {_SIDE}, "
    "integer shifts",
    "motion": "mean of the 5 % largest block motions, shares of the short side per frame",
    "dynamic_degree": "share of clips in which a quarter of the frame pairs have motion above "
    "6/256 (VBench's rule, block matching in place of RAFT)",
}
MEASURES = tuple(PROTOCOL)


def temporal_measures(clip: UInt8[np.ndarray, "t h w 3"]) -> dict[str, float]:
    """All measures of one clip; `dynamic_degree` is 0 or 1.

    Raises:
        ValueError: fewer than three frames.
    """
    if len(clip) < 3:
        raise ValueError(f"{len(clip)} frames have no consistency over time; three have")
    pixels = clip.astype(np.float32) / 255
    neighbours = 0.5 * (pixels[:-2] + pixels[2:])
    errors, motions = _matched(_small(pixels))
    dynamic = np.mean(motions > _FAST) >= _PAIRS
    return {
        "flicker": float(np.abs(np.diff(pixels, axis=0)).mean()),
        "smoothness": 1 - float(np.abs(pixels[1:-1] - neighbours).mean()),
        "warping_error": float(errors.mean()),
        "motion": float(motions.mean()),
        "dynamic_degree": float(dynamic),
    }


def _small(pixels: Float[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "t h w"]:
    """Brightness at a short side of at most `_SIDE`."""
    grey = pixels.mean(axis=-1)
    scale = _SIDE / min(grey.shape[1:])
    if scale >= 1:
        return grey
    return np.asarray(
        ndimage.zoom(grey, (1, scale, scale), order=1, grid_mode=True, mode="nearest")
    )


def _matched(grey: Float[np.ndarray, "t h w"]) -> tuple[Any, Any]:
    """Mean squared error after motion, and the fastest motions, of each pair of frames.

    Every pixel takes the shift under which the block about it fits the frame before best. Shifts
    are tried from none to large, and a further one must fit clearly better: in flat regions all
    fit. Pixels at the border, whose origin may lie outside, do not count.
    """
    before, after = grey[:-1], grey[1:]
    steps = range(-_REACH, _REACH + 1)
    shifts = sorted(((y, x) for y in steps for x in steps), key=lambda s: s[0] ** 2 + s[1] ** 2)
    padded = np.pad(before, ((0, 0), (_REACH, _REACH), (_REACH, _REACH)), mode="edge")
    height, width = grey.shape[1:]
    best = np.full(after.shape, np.inf, np.float32)
    error, speed = np.zeros_like(after), np.zeros_like(after)
    for y, x in shifts:
        top, left = _REACH - y, _REACH - x
        moved = padded[:, top : top + height, left : left + width]
        difference = (after - moved) ** 2
        cost = ndimage.uniform_filter(difference, (0, _BLOCK, _BLOCK), mode="nearest")
        better = cost < 0.9 * best - 1e-5
        best = np.where(better, cost, best)
        error = np.where(better, difference, error)
        speed = np.where(better, np.hypot(y, x), speed)
    inside = slice(_REACH, -_REACH)
    error, speed = error[:, inside, inside], speed[:, inside, inside]
    flat = np.sort(speed.reshape(len(speed), -1), axis=1)
    count = max(1, round(_TOP * flat.shape[1]))
    motions = flat[:, -count:].mean(axis=1) / min(height, width)
    return error.reshape(len(error), -1).mean(axis=1), motions
