"""Buckets: the finite set of clip shapes (frames x height x width) that batches may have.

A bucket is written `17x256x256`, with a weight `17x256x256@0.5`; `97x2048x2048*4` has batches of 4
clips in place of the config's `batch_size`; both together: `97x2048x2048*4@0.5`.

A clip belongs to the buckets whose aspect ratio is nearest to its own and which it fills without
being enlarged or repeated; one that is too small or short for all of them goes to the smallest of
that aspect.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pyratok_jax.errors import UserError

ASPECTS = (1 / 1, 4 / 3, 3 / 2, 16 / 9, 2 / 1)
_PATTERN = re.compile(r"(\d+)x(\d+)x(\d+)(?:\*([1-9]\d*))?(?:@([0-9.]+))?")


@dataclass(frozen=True, order=True)
class Bucket:
    """One compiled shape of a batch's clips, and its share of the steps.

    Attributes:
        frames, height, width: of every clip.
        weight: share of the steps, before they are made to add up to 1.
        clips: of a batch over all hosts; 0: as many as the config's `batch_size`.
    """

    frames: int
    height: int
    width: int
    weight: float = 1.0
    clips: int = 0

    @property
    def name(self) -> str:
        """As written in a config, without clips and weight."""
        return f"{self.frames}x{self.height}x{self.width}"


def parse_buckets(specs: Sequence[str]) -> tuple[Bucket, ...]:
    """Buckets from their written form.

    Raises:
        UserError: malformed, empty or repeated.
    """
    buckets = []
    for spec in specs:
        match = _PATTERN.fullmatch(str(spec).strip())
        if match is None or 0 in map(int, match.groups()[:3]):
            raise UserError(
                f"bucket {spec!r} in the data config is not of the form FRAMESxHEIGHTxWIDTH with "
                "*CLIPS and @WEIGHT after it where wanted, for example 17x256x256@0.5"
            )
        frames, height, width, clips, weight = match.groups()
        buckets.append(
            Bucket(int(frames), int(height), int(width), float(weight or 1.0), int(clips or 0))
        )
    names = [bucket.name for bucket in buckets]
    if not names or len(set(names)) != len(names):
        raise UserError(f"the data config needs buckets, each once; got {', '.join(names) or '-'}")
    if sum(bucket.weight for bucket in buckets) <= 0:
        raise UserError("all buckets of the data config have weight 0; give one a weight above 0")
    return tuple(buckets)


def assign_buckets(
    buckets: Sequence[Bucket],
    height: np.ndarray,
    width: np.ndarray,
    seconds: np.ndarray,
    fps: np.ndarray,
    target_fps: float = 0.0,
) -> np.ndarray:
    """Which clips belong to which buckets.

    Args:
        buckets: all buckets.
        height: of each clip, (n,).
        width: likewise.
        seconds: length of each clip (n,); infinite for still images, which fit any length.
        fps: native frame rate (n,).
        target_fps: the rate that clips are sampled at (0: native).

    Returns:
        bool (n, buckets), at least one True in each row.
    """
    aspects = np.array([math.log(b.width / b.height) for b in buckets])
    distance = np.abs(np.log(width / height)[:, None] - aspects[None])
    nearest = distance <= distance.min(axis=1, keepdims=True) + 1e-9
    rate = np.full_like(fps, target_fps) if target_fps else fps
    needed = np.array([b.frames for b in buckets])[None] / rate[:, None]
    fits = nearest & (seconds[:, None] + 0.5 / fps[:, None] >= needed)
    fits &= height[:, None] >= np.array([b.height for b in buckets])[None]
    fits &= width[:, None] >= np.array([b.width for b in buckets])[None]
    volume = np.array([float(b.frames) * b.height * b.width for b in buckets])
    smallest = np.argmin(np.where(nearest, volume[None], np.inf), axis=1)
    left_over = ~fits.any(axis=1)
    fits[left_over, smallest[left_over]] = True
    return fits
