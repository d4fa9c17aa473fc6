"""Held-out videos of the procedural world in the published layouts that the evaluators read.

videos/            with captions; vis/ and davis/ with masks of everything that is visible
localization/      longer videos in which one thing does something twice
classification/    test/ of pairs of colour and shape seen in training, train/ for probes
unseen/            the same for pairs that training never shows
motions/           the same by what the thing does
mvbench/           questions with four options
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyratok_jax.data.world.drawing import draw_film
from pyratok_jax.data.world.films import WorldFilm, world_film
from pyratok_jax.data.world.scenes import Action, Scene, draw_backdrop, draw_thing
from pyratok_jax.data.world.vocabulary import (
    COLOURS,
    MOTIONS,
    SHAPES,
    VERBS,
    seen_names,
    unseen_names,
)
from pyratok_jax.evaluation import synthetic
from pyratok_jax.evaluation.data.mvbench import LAYOUT
from pyratok_jax.io import Json

FRAMES = 17
CLASSES = 12  # of each classification set
ACTIONS = ("blinking", "growing", "spinning", "bouncing", "left")
_SEED = 77  # apart from the seeds of training and held-out films


def scene_of(film: WorldFilm, frames: int, size: int) -> synthetic.Scene:
    """A film as the writers of the layouts take it."""
    drawn = film.film(frames, size, size)
    things = zip(film.scene.things, drawn.masks, strict=True)
    return synthetic.Scene(
        drawn.frames, tuple(synthetic.Thing(t.name, mask) for t, mask in things), film.caption
    )


def classes(names: Sequence[str], count: int = CLASSES) -> list[str]:
    """`count` names, evenly spread over all of them."""
    return [names[i] for i in np.unique(np.linspace(0, len(names) - 1, count).astype(int))]


def single(rng: np.random.Generator, name: str, motion: str | None = None) -> Scene:
    """One thing of a name on a random background."""
    colour, shape = name.split()
    return Scene((draw_thing(rng, (colour, shape), motion),), (draw_backdrop(rng),), "seen")


def write_classes(
    output: Path, rng: np.random.Generator, labels: Sequence[str], count: int, size: int
) -> None:
    """Folders of videos by label: names of things, or motions."""
    for part in ("train", "test"):
        for label in labels:
            for number in range(count):
                if label in MOTIONS:
                    names = seen_names()
                    scene = single(rng, names[rng.integers(len(names))], label)
                else:
                    scene = single(rng, label)
                film = draw_film(scene, FRAMES, size, size)
                synthetic.write_video(output / part / label / f"{number:03d}.mp4", film.frames)


def label_of(action: str) -> str:
    """What an annotator would call an action: "left" is "moves to the left"."""
    return VERBS[action][0][0]


def write_actions(output: Path, rng: np.random.Generator, count: int, size: int) -> None:
    """THUMOS14's layout: each video has two intervals of an action; it rests in between."""
    database: dict[str, Json] = {}
    frames = 90
    for number in range(count):
        names = seen_names()
        thing = single(rng, names[rng.integers(len(names))], "still")
        spans = []
        for low in (int(rng.integers(4, 12)), int(rng.integers(48, 54))):
            action = ACTIONS[int(rng.integers(len(ACTIONS)))]
            spans.append((low, low + int(rng.integers(28, 34)), action))
        actions = tuple(Action(a, s / frames, (e - 1) / frames) for s, e, a in spans)
        moving = dataclasses.replace(
            thing.things[0], place=(0.5, 0.5), radius=0.16, reach=0.5, actions=actions
        )
        scene = dataclasses.replace(thing, things=(moving,))
        name = f"video_{number:03d}"
        film = draw_film(scene, frames, size, size)
        synthetic.write_video(output / "videos" / f"{name}.mp4", film.frames)
        database[name] = {
            "subset": "validation",
            "duration": frames / synthetic.FPS,
            "annotations": [
                {"segment": [s / synthetic.FPS, e / synthetic.FPS], "label": label_of(a)}
                for s, e, a in spans
            ],
        }
    synthetic.write_json(output / "annotations.json", {"database": database})
    for left_out in range(len(ACTIONS)):
        chosen = [label_of(action) for i, action in enumerate(ACTIONS) if i != left_out]
        path = output / "splits" / f"split_{left_out}.list"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(chosen) + "\n")


def write_questions(output: Path, seed: int, count: int, size: int) -> None:
    """MVBench's layout: questions about colour, shape, motion and number."""
    asked: dict[str, list[dict[str, Json]]] = {}
    for number in range(count):
        film = world_film("world-heldout", number, seed + _SEED)
        for question in film.questions:
            part = LAYOUT[question.task]
            name = f"world_{number:03d}.mp4"
            path = output / "video" / part.folder / name
            if not path.exists():
                synthetic.write_video(path, film.draw(FRAMES, size, size))
            asked.setdefault(question.task, []).append(
                {
                    "video": name,
                    "question": question.text,
                    "candidates": list(question.options),
                    "answer": question.answer,
                }
            )
    for task, rows in asked.items():
        path = output / "json" / f"{task}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")


def write_world(output: Path, *, seed: int = 0, count: int = 4, size: int = 64) -> None:
    """Write the whole set: the same bytes of pictures for the same arguments."""
    rng = np.random.default_rng((seed, _SEED))
    films = [world_film("world-heldout", 2 * number, seed) for number in range(count)]
    scenes = [scene_of(film, FRAMES, size) for film in films]
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    synthetic.write_videos(output / "videos", scenes)
    synthetic.write_vis(output / "vis", scenes, names)
    synthetic.write_davis(output / "davis", scenes)
    write_actions(output / "localization", rng, count, size)
    each = max(count // 2, 2)
    write_classes(output / "classification", rng, classes(seen_names()), each, size)
    write_classes(output / "unseen", rng, classes(unseen_names()), each, size)
    write_classes(output / "motions", rng, MOTIONS, each, size)
    write_questions(output / "mvbench", seed, count, size)
