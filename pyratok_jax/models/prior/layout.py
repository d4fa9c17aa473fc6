"""What is static about the tokens of a clip: where each stands, and who sees whom.

Tokens are listed level after level, in raster order (t, h, w) within each, as in the token files.
A group is a latent frame: frame 0 of the clip, then `latent_stride[0]` frames each. A part is one
level of one group.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pyratok_jax.nn.settings import Stride

Grids = tuple[tuple[int, int, int], ...]
NEVER = 2**30
Places = Float[np.ndarray, "n 4"]


class Visibility(NamedTuple):
    """Who sees whom, as three numbers per token instead of a mask of n x n.

    A query sees a key whose `writes` is below its `reads`, and all of its own part.

    Attributes:
        writes: from which time on others see the token; -1: always, `NEVER`: only its own part.
        reads: the time that the token has reached.
        part: tokens of the same part see each other; -1: part of none.
    """

    writes: Int[np.ndarray | Array, " n"]
    reads: Int[np.ndarray | Array, " n"]
    part: Int[np.ndarray | Array, " n"]

    @classmethod
    def of(cls, n: int, *, writes: int, reads: int, part: int = -1) -> "Visibility":
        """The same for n tokens."""
        return cls(*(np.full(n, x, np.int32) for x in (writes, reads, part)))


def visible(query: Visibility, key: Visibility, window: int = 0) -> Bool[np.ndarray | Array, "t s"]:
    """Which keys each query sees.

    Args:
        query, key: of the tokens; NumPy's give a static mask.
        window: keys written earlier than that many times before are not seen; 0: all are.
    """
    seen = key.writes[None] < query.reads[:, None]
    if window:
        recent = key.writes[None] >= query.reads[:, None] - window
        seen = seen & (recent | (key.writes[None] < 0))
    same = (query.part[:, None] == key.part[None]) & (query.part[:, None] >= 0)
    return seen | same


def join(*parts: Visibility) -> Visibility:
    """Of tokens one after another; static parts only."""
    return Visibility(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def prefix_places(length: int) -> Places:
    """Positions (level, t, h, w) of a prefix: before the clip in time, on a level of its own."""
    places = np.zeros((length, 4), np.float32)
    places[:, 0] = -1
    places[:, 1] = np.arange(length) - length
    return places


@dataclass(frozen=True)
class Slots:
    """The raster sequence: a mark before each level, then its tokens; see `tokens.sequence`.

    Attributes:
        token: number of the token in each slot, -1 for a mark.
        level: the level that the slot belongs to.
        places: positions (level, t, h, w); a mark stands before its level's first token.
        predicting: slots whose successor is a token, one for each token in order.
    """

    token: Int[np.ndarray, " m"]
    level: Int[np.ndarray, " m"]
    places: Float[np.ndarray, "m 4"]
    predicting: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Layout:
    """The tokens of a clip of one size.

    Attributes:
        grids: (t, h, w) of every level.
        strides: (time, space) of every level in pixels.
        latent_stride: of the latent grid.
    """

    grids: Grids
    strides: tuple[Stride, ...]
    latent_stride: Stride

    def __post_init__(self) -> None:
        sizes = {
            ((t - 1) * dt, h * ds, w * ds)
            for (t, h, w), (dt, ds) in zip(self.grids, self.strides, strict=True)
        }
        if len(sizes) != 1 or next(iter(sizes))[0] % self.latent_stride[0]:
            raise ValueError(f"grids {self.grids} are of no one clip with strides {self.strides}")

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each level."""
        return tuple(t * h * w for t, h, w in self.grids)

    @property
    def size(self) -> int:
        """Tokens of the clip."""
        return sum(self.counts)

    @property
    def groups(self) -> int:
        """Latent frames of the clip."""
        return 1 + (self.grids[0][0] - 1) * self.strides[0][0] // self.latent_stride[0]

    @property
    def latent_sides(self) -> tuple[int, int]:
        """Rows and columns of the latent."""
        (_, h, w), ds = self.grids[0], self.strides[0][1]
        return h * ds // self.latent_stride[1], w * ds // self.latent_stride[1]

    @functools.cached_property
    def level(self) -> Int[np.ndarray, " n"]:
        """Level of each token, from 0."""
        return np.repeat(np.arange(len(self.grids), dtype=np.int32), self.counts)

    @functools.cached_property
    def group(self) -> Int[np.ndarray, " n"]:
        """Group of each token, from 0."""
        found = []
        for (t, h, w), (dt, _) in zip(self.grids, self.strides, strict=True):
            frames = np.arange(t)
            groups = np.where(frames == 0, 0, 1 + (frames - 1) * dt // self.latent_stride[0])
            found.append(np.repeat(groups, h * w))
        return np.concatenate(found).astype(np.int32)

    @property
    def part(self) -> Int[np.ndarray, " n"]:
        """Part of each token: group x levels + level."""
        return self.group * np.int32(len(self.grids)) + self.level

    @functools.cached_property
    def places(self) -> Places:
        """Positions (level, t, h, w): centres of the tokens' cells, in units of the latent grid.

        Cells of different levels that overlap have near positions.
        """
        return np.concatenate(
            [
                level_places(number, grid, stride, self.latent_stride)
                for number, (grid, stride) in enumerate(zip(self.grids, self.strides, strict=True))
            ]
        )

    @functools.cached_property
    def slots(self) -> Slots:
        """The raster sequence."""
        token, level, places, start = [], [], [], 0
        for number, count in enumerate(self.counts):
            own = self.places[start : start + count]
            mark = own[:1] - np.array([[0, 1, 0, 0]], np.float32)
            token += [np.array([-1]), np.arange(start, start + count)]
            level.append(np.full(count + 1, number, np.int32))
            places += [mark, own]
            start += count
        tokens = np.concatenate(token).astype(np.int32)
        return Slots(
            tokens, np.concatenate(level), np.concatenate(places), np.flatnonzero(tokens >= 0) - 1
        )

    def split(self, tokens: np.ndarray | Array) -> tuple[np.ndarray | Array, ...]:
        """Tokens (b, n, ...) as levels (b, t, h, w, ...)."""
        ends = np.cumsum(self.counts)
        return tuple(
            tokens[:, end - count : end].reshape(tokens.shape[0], *grid, *tokens.shape[2:])
            for grid, count, end in zip(self.grids, self.counts, ends, strict=True)
        )


def level_places(
    level: int, grid: tuple[int, int, int], stride: Stride, latent_stride: Stride, start: int = 0
) -> Places:
    """Positions (level, t, h, w) of one level's tokens in raster order.

    Args:
        level: its number.
        grid: (t, h, w).
        stride: in pixels.
        latent_stride: the unit of the positions.
        start: pixel frame at which the first token begins: 0, where frame 0 stands alone, or a
            later one.
    """
    (t, h, w), (dt, ds) = grid, stride
    if start:
        time = start + np.arange(t) * dt + (dt - 1) / 2
    else:
        time = np.concatenate([[0.0], 1 + np.arange(t - 1) * dt + (dt - 1) / 2])
    rows = np.meshgrid(
        time / latent_stride[0],
        (np.arange(h) + 0.5) * ds / latent_stride[1],
        (np.arange(w) + 0.5) * ds / latent_stride[1],
        indexing="ij",
    )
    columns = [np.full(t * h * w, float(level)), *(x.ravel() for x in rows)]
    return np.stack(columns, axis=1).astype(np.float32)
