"""The world as a source of clips: `builtin:world` for training, `builtin:world-heldout` for tests.

Film number i of a split is a function of (seed, split, i); no file is read or written.
"""

import dataclasses
import functools
import itertools
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import UInt8

from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.video.writer import VideoWriter
from pyratok_jax.data.world.drawing import Film, draw_film
from pyratok_jax.data.world.scenes import Scene, draw_scene
from pyratok_jax.data.world.sentences import Question, caption, questions

FPS = 10.0
FRAMES, SIDE = 17, 96  # of a film as a file
SPLITS = {"world": 1 << 20, "world-heldout": 400}
# Held-out films in turn: half of them hold nothing unseen but themselves.
HELDOUT_KINDS = (
    "seen", "combination", "seen", "phrasing", "seen", "combination", "seen", "object",
)  # fmt: skip
_SPEC = re.compile(r"builtin:(world(?:-heldout)?)(?:#(\d+))?")


@dataclasses.dataclass(frozen=True)
class WorldFilm:
    """One film: what it shows, and the sentence about it; also a `records.Drawing`."""

    scene: Scene
    caption: str
    questions: tuple[Question, ...]

    def film(self, frames: int, height: int, width: int) -> Film:
        """Pixels, masks and boxes."""
        return draw_film(self.scene, frames, height, width)

    def draw(self, frames: int, height: int, width: int) -> UInt8[np.ndarray, "t h w 3"]:
        """As `Drawing.draw`."""
        return self.film(frames, height, width).frames

    def encoded(self) -> bytes:
        """As `Drawing.encoded`: `FRAMES` frames of `SIDE` pixels a side, nearly lossless."""
        return _encoded(self)


@functools.lru_cache(64)
def _encoded(film: WorldFilm) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "film.mp4"
        with VideoWriter(path, fps=FPS, crf=4, preset="veryfast", reproducible=True) as writer:
            for frame in film.draw(FRAMES, SIDE, SIDE):
                writer.write(frame)
        return path.read_bytes()


def world_film(split: str, number: int, seed: int = 0) -> WorldFilm:
    """Film `number` of a split of `SPLITS`.

    Raises:
        KeyError: another split.
    """
    rng = np.random.default_rng((seed, list(SPLITS).index(split), number))
    kind = "seen" if split == "world" else HELDOUT_KINDS[number % len(HELDOUT_KINDS)]
    scene = draw_scene(rng, kind)
    return WorldFilm(scene, caption(scene, rng), questions(scene, rng))


def film_numbers(count: int, things: int, seed: int = 0) -> list[int]:
    """Numbers of the first `count` training films of so many things; 0: of any number."""

    def wanted(number: int) -> bool:
        return things in (0, len(world_film("world", number, seed).scene.things))

    return list(itertools.islice(filter(wanted, itertools.count()), count))


def world_clips(
    cache_dir: str | os.PathLike | None,
    clips: int,
    frames: int,
    size: int,
    seed: int = 0,
    *,
    things: int = 0,
) -> UInt8[np.ndarray, "n t h w 3"]:
    """The first `clips` films of the training split, drawn at the size asked for.

    Args:
        cache_dir: not used; here so that it is called as other sources of clips are.
        clips: number of clips.
        frames: frames of a clip.
        size: its side in pixels.
        seed: of the world.
        things: that each film shows; 0: any number.
    """
    del cache_dir
    films = (world_film("world", i, seed) for i in film_numbers(clips, things, seed))
    return np.stack([film.draw(frames, size, size) for film in films])


class WorldRecords(Sequence[ClipRecord]):
    """The films of a split, as records; the id of one names its kind (`scenes.KINDS`)."""

    def __init__(self, split: str, seed: int = 0) -> None:
        self.split, self.seed = split, seed

    def __len__(self) -> int:
        return SPLITS[self.split]

    @overload
    def __getitem__(self, index: int) -> ClipRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ClipRecord]: ...

    def __getitem__(self, index: int | slice) -> ClipRecord | list[ClipRecord]:
        """One film.

        Raises:
            IndexError: beyond the split's length.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"film {index} of {len(self)}")
        number = int(index) % len(self)
        film = world_film(self.split, number, self.seed)
        return ClipRecord(
            f"{film.scene.kind}/{number:07d}",
            f"{self.split}/{number:07d}.mp4",
            film.caption,
            width=SIDE,
            height=SIDE,
            seconds=FRAMES / FPS,
            fps=FPS,
            drawing=film,
        )


def parse_world(spec: str) -> WorldRecords | None:
    """The records of `builtin:world[-heldout][#SEED]`; None for another specification."""
    found = _SPEC.fullmatch(spec)
    return WorldRecords(found[1], int(found[2] or 0)) if found else None
