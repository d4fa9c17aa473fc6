"""Prompts of held-out films, with what a video has to show to be faithful to each."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from pyratok_jax.data.world.drawing import Film
from pyratok_jax.data.world.films import WorldFilm, world_film
from pyratok_jax.data.world.reader import Seen

# Shapes that training never shows ("object") cannot be drawn by a prior that was trained on it.
KINDS = ("seen", "combination", "phrasing")
_GAP = 2  # Pixels that things keep between them, at least, to be read apart.


@dataclasses.dataclass(frozen=True)
class WorldPrompt:
    """A caption of a held-out film.

    Attributes:
        number: of the film in "world-heldout".
        kind: what is held out, of `scenes.KINDS`.
        text: the caption.
        things: what it names.
    """

    number: int
    kind: str
    text: str
    things: tuple[Seen, ...]


def things_of(film: WorldFilm) -> tuple[Seen, ...]:
    """The things of a film, sorted as `read_video` sorts them."""
    return tuple(sorted(Seen(t.colour, t.shape, t.motion) for t in film.scene.things))


def readable(film: WorldFilm, drawn: Film) -> bool:
    """Whether all can be read off a drawn film: one shot, no thing touches or hides another."""
    if film.scene.cut is not None:
        return False
    block = np.ones((1, 1 + 2 * _GAP, 1 + 2 * _GAP))
    covered = sum(ndimage.binary_dilation(mask, block).astype(int) for mask in drawn.masks)
    return bool(np.max(covered) <= 1)


def heldout_prompts(
    count: int,
    frames: int,
    side: int,
    *,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    things: int = 0,
) -> list[WorldPrompt]:
    """The first `count` prompts whose own film is readable at a size.

    Args:
        count: of prompts.
        frames, side: size of the films, square.
        seed: of the world.
        kinds: of films that are taken.
        things: how many such a film shows; 0: any number.
    """
    found: list[WorldPrompt] = []
    number = 0
    while len(found) < count:
        film = world_film("world-heldout", number, seed)
        wanted = film.scene.kind in kinds and things in (0, len(film.scene.things))
        if wanted and readable(film, film.film(frames, side, side)):
            found.append(WorldPrompt(number, film.scene.kind, film.caption, things_of(film)))
        number += 1
    return found
