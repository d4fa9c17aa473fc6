"""What is to be seen in a video of the world, drawn from a seed; independent of its resolution."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pyratok_jax.data.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SEEN_SHAPES,
    SIZES,
    TEXTURES,
    UNSEEN_SHAPES,
    unseen_combination,
)

# What is unusual about a scene: nothing, a held-out pair, a held-out shape, held-out phrasings.
KINDS = ("seen", "combination", "object", "phrasing")


@dataclasses.dataclass(frozen=True)
class Action:
    """A motion during a part of the video; `start` and `end` are shares of its length."""

    motion: str
    start: float = 0.0
    end: float = 1.0


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        colour, shape, size, texture: words of the vocabulary.
        radius: share of the picture's shorter side.
        place: centre (x, y) in the middle of its motion, shares of width and height.
        actions: what it does, in order; it rests in between.
        reach: how far it moves, as a share of the picture.
        turn: angle at rest, radians.
        tint: added to the colour, 0..255 scale.
        shot: number of the shot that shows it.
    """

    colour: str
    shape: str
    size: str
    texture: str
    radius: float
    place: tuple[float, float]
    actions: tuple[Action, ...]
    reach: float
    turn: float
    tint: tuple[int, int, int]
    shot: int = 0

    @property
    def name(self) -> str:
        """ "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def motion(self) -> str:
        """Of its first action."""
        return self.actions[0].motion

    def pose(
        self, times: Float[np.ndarray, "t"]
    ) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"], Float[np.ndarray, "t"],
               Float[np.ndarray, "t"], np.ndarray]:  # fmt: skip
        """(x, y, radius, angle, shown) at times in [0, 1]."""
        x, y = (np.full(len(times), place) for place in self.place)
        size, angle = np.full(len(times), self.radius), np.full(len(times), self.turn)
        shown = np.ones(len(times), bool)
        for action in self.actions:
            inside = (times >= action.start) & (times <= action.end)
            phase = np.clip((times - action.start) / (action.end - action.start), 0.0, 1.0)
            centred = np.where(inside, phase - 0.5, 0.0)
            if action.motion in ("left", "right"):
                x += self.reach * centred * (1 if action.motion == "right" else -1)
            elif action.motion in ("up", "down"):
                y += self.reach * centred * (1 if action.motion == "down" else -1)
            elif action.motion in ("growing", "shrinking"):
                sign = 1 if action.motion == "growing" else -1
                size *= np.exp(sign * 1.1 * centred)
            elif action.motion == "spinning":
                angle += np.where(inside, phase * 2.4, 0.0)
            elif action.motion == "bouncing":
                wave = np.abs(np.sin(phase * 2 * np.pi))
                y -= np.where(inside, 0.5 * self.reach * wave, 0.0)
            elif action.motion == "blinking":
                period = 0.25 * min(1.0, 1.0 / max(action.end - action.start, 1e-6))
                shown &= ~inside | (((times - action.start) / period).astype(int) % 2 == 0)
        return x, y, size, angle, shown


@dataclasses.dataclass(frozen=True)
class Backdrop:
    """A background: its kind, a seed of its texture, and how far the camera pans (x, y)."""

    kind: str
    seed: int
    pan: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One video: things (later ones in front), a backdrop for each shot, and where it cuts.

    `cut` is the share of the video at which the second shot begins; None: one shot.
    """

    things: tuple[Thing, ...]
    backdrops: tuple[Backdrop, ...]
    kind: str
    cut: float | None = None


def _pairs(kind: str) -> list[tuple[str, str]]:
    if kind == "object":
        return [(colour, shape) for colour in COLOURS for shape in UNSEEN_SHAPES]
    held = kind == "combination"
    return [(c, s) for c in COLOURS for s in SEEN_SHAPES if unseen_combination(c, s) == held]


def draw_thing(
    rng: np.random.Generator,
    pair: tuple[str, str],
    motion: str | None = None,
    *,
    size: str | None = None,
    shot: int = 0,
) -> Thing:
    """A random thing of a colour and a shape, which stays inside the picture."""
    colour, shape = pair
    motion = motion or MOTIONS[rng.integers(len(MOTIONS))]
    size = size or tuple(SIZES)[rng.integers(len(SIZES))]
    texture = TEXTURES[np.searchsorted((0.5, 0.8), rng.random())]
    if motion == "spinning" and shape in ("circle", "ring"):
        texture = "striped"  # A plain disc that spins cannot be told from one that does not.
    radius = rng.uniform(*SIZES[size])
    reach = rng.uniform(0.35, 0.55) if radius < 0.19 else rng.uniform(0.3, 0.4)
    # Room for the motion, so that nothing leaves the picture.
    half = [radius, radius]
    if motion in ("left", "right"):
        half[0] += reach / 2
    elif motion in ("up", "down", "bouncing"):
        half[1] += reach / 2
    elif motion in ("growing", "shrinking"):
        half = [1.75 * radius, 1.75 * radius]
    low = [min(h + 0.01, 0.5) for h in half]
    place = (float(rng.uniform(low[0], 1 - low[0])), float(rng.uniform(low[1], 1 - low[1])))
    tint = tuple(int(n) for n in rng.integers(-12, 13, 3))
    turn = float(rng.uniform(-0.25, 0.25))
    return Thing(
        colour, shape, size, texture, float(radius), place, (Action(motion),), float(reach),
        turn, (tint[0], tint[1], tint[2]), shot,
    )  # fmt: skip


def _apart(thing: Thing, others: Sequence[Thing]) -> bool:
    for other in others:
        dx, dy = (a - b for a, b in zip(thing.place, other.place, strict=True))
        if np.hypot(dx, dy) < 0.9 * (thing.radius + other.radius) and thing.shot == other.shot:
            return False
    return True


def draw_backdrop(rng: np.random.Generator) -> Backdrop:
    """A random background; the camera moves in half of them."""
    pan = (0.0, 0.0)
    if rng.random() < 0.5:
        pan = (float(rng.uniform(-0.3, 0.3)), float(rng.uniform(-0.3, 0.3)))
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    return Backdrop(kind, int(rng.integers(2**31)), pan)


def draw_scene(rng: np.random.Generator, kind: str = "seen", count: int | None = None) -> Scene:
    """A random scene of `count` things (None: 1 to 3) without two of the same name.

    In a seventh of the scenes with several things two are twins: equal in everything but their
    place. A twelfth of the scenes with several things cut to a second shot.

    Raises:
        ValueError: a kind that is not in `KINDS`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    count = count or int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
    pairs = _pairs(kind)
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[:count]]
    cut = float(rng.uniform(0.4, 0.6)) if count > 1 and rng.random() < 1 / 12 else None
    twins = count > 1 and cut is None and rng.random() < 1 / 7
    things: list[Thing] = []
    for number, pair in enumerate(chosen):
        shot = 1 if cut is not None and number == count - 1 else 0
        twin = twins and number == 1
        for _ in range(12):
            if twin:
                thing = dataclasses.replace(things[0], place=_elsewhere(rng, things[0]))
            else:
                thing = draw_thing(rng, pair, shot=shot)
            if _apart(thing, things):
                break
        things.append(thing)
    if cut is not None:
        things = [
            dataclasses.replace(
                thing,
                actions=(Action(thing.motion, *((0.0, cut) if thing.shot == 0 else (cut, 1.0))),),
            )
            for thing in things
        ]
    shots = 1 if cut is None else 2
    return Scene(tuple(things), tuple(draw_backdrop(rng) for _ in range(shots)), kind, cut)


def _elsewhere(rng: np.random.Generator, thing: Thing) -> tuple[float, float]:
    """Another place at which a thing's motion stays inside the picture."""
    other = draw_thing(rng, (thing.colour, thing.shape), thing.motion, size=thing.size)
    room = [max(1.75 * thing.radius, thing.radius + thing.reach / 2) + 0.01] * 2
    x, y = (float(np.clip(p, min(r, 0.5), max(1 - r, 0.5))) for p, r in
            zip(other.place, room, strict=True))  # fmt: skip
    return x, y
