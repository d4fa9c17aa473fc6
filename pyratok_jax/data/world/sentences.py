"""Scenes in words: captions, phrases of things, and questions with their answers."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from pyratok_jax.data.world.scenes import Scene, Thing
from pyratok_jax.data.world.vocabulary import (
    COLOURS,
    MOTIONS,
    NUMBERS,
    SEEN_SHAPES,
    SENTENCES,
    UNSEEN_SENTENCES,
    UNSEEN_VERBS,
    VERBS,
)

_BACKGROUND_WORDS = {
    "gradient": "a smooth background",
    "noise": "a cloudy background",
    "checks": "a checked background",
    "stripes": "a striped background",
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its options; `answer` is one of them, `task` a task name of MVBench."""

    task: str
    text: str
    options: tuple[str, ...]
    answer: str


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true sentence about a scene, in a random wording.

    Every thing is named with its colour, shape and motion; size, texture, relation and background
    are sometimes said. A scene of the kind "phrasing" is told in held-out words.
    """
    unseen = scene.kind == "phrasing"
    verbs = {m: UNSEEN_VERBS[m] if unseen else VERBS[m][rng.integers(2)] for m in MOTIONS}
    clauses = [_clause(group, verbs, rng) for group in _groups(scene.things)]
    if scene.cut is not None:
        text = " and ".join(clauses[:-1]) + ", then " + clauses[-1]
    else:
        text = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + " and " + clauses[-1]
    extra = relation(scene.things)
    if extra and rng.random() < 0.5:
        text += f"; {extra}"
    elif scene.cut is None and rng.random() < 0.2:
        text += f" on {_BACKGROUND_WORDS[scene.backdrops[0].kind]}"
    patterns = UNSEEN_SENTENCES if unseen else SENTENCES
    sentence = patterns[rng.integers(len(patterns))].format(text)
    return sentence[0].upper() + sentence[1:]


def _groups(things: Sequence[Thing]) -> list[list[Thing]]:
    groups: list[list[Thing]] = []
    for thing in things:
        for group in groups:
            if group[0].name == thing.name:
                group.append(thing)
                break
        else:
            groups.append([thing])
    return groups


def _clause(group: list[Thing], verbs: dict[str, tuple[str, str]], rng: np.random.Generator) -> str:
    thing, several = group[0], len(group) > 1
    words = []
    if thing.size != "medium" and rng.random() < 0.5:
        words.append(thing.size)
    if thing.texture != "plain" and rng.random() < 0.5:
        words.append(thing.texture)
    noun = " ".join([*words, thing.colour, _plural(thing.shape) if several else thing.shape])
    article = NUMBERS[len(group)] if several else ("an" if noun[0] in "aeiou" else "a")
    return f"{article} {noun} {verbs[thing.motion][several]}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def relation(things: Sequence[Thing]) -> str | None:
    """ "the red circle is left of the blue star", of two things for which it holds throughout."""
    times = np.linspace(0.0, 1.0, 9)
    singles = [group[0] for group in _groups(things) if len(group) == 1]
    for i, a in enumerate(singles):
        for b in singles[i + 1 :]:
            if a.shot != b.shot:
                continue
            (ax, ay, *_), (bx, by, *_) = a.pose(times), b.pose(times)
            for first, second, words in ((ax, bx, ("left of", "right of")),
                                         (ay, by, ("above", "below"))):  # fmt: skip
                if first.max() < second.min() - 0.1:
                    return f"the {a.name} is {words[0]} the {b.name}"
                if second.max() < first.min() - 0.1:
                    return f"the {a.name} is {words[1]} the {b.name}"
    return None


def questions(scene: Scene, rng: np.random.Generator) -> tuple[Question, ...]:
    """What can be asked about a scene, with four options each."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    alone = [t for t in scene.things if t.shape == thing.shape]
    asked = []
    if all(t.colour == thing.colour for t in alone):
        asked.append(_choice(rng, "moving_attribute", f"Which colour has the {thing.shape}?",
                             thing.colour, tuple(COLOURS)))  # fmt: skip
    same = [t for t in scene.things if t.colour == thing.colour]
    if all(t.shape == thing.shape for t in same):
        asked.append(_choice(rng, "object_existence", f"Which shape is {thing.colour}?",
                             thing.shape, SEEN_SHAPES))  # fmt: skip
    if all(t.motion == thing.motion for t in scene.things if t.name == thing.name):
        said = {motion: VERBS[motion][0][0] for motion in MOTIONS}
        asked.append(_choice(rng, "moving_direction", f"What does the {thing.name} do?",
                             f"It {said[thing.motion]}.",
                             tuple(f"It {words}." for words in said.values())))  # fmt: skip
    counts = (*NUMBERS.values(), "four")
    asked.append(
        Question("moving_count", "How many shapes are there?", counts, NUMBERS[len(scene.things)])
    )
    return tuple(asked)


def _choice(
    rng: np.random.Generator, task: str, text: str, answer: str, pool: tuple[str, ...]
) -> Question:
    wrong = [option for option in pool if option != answer]
    options = [answer, *(wrong[i] for i in rng.permutation(len(wrong))[:3])]
    return Question(task, text, tuple(options[i] for i in rng.permutation(4)), answer)
