"""`builtin:world` as a prior: what is asked for appears, and it is the words that bring it."""

import numpy as np
import pytest

import pyratok_jax as pt
from pyratok_jax.data.world.reader import read_video
from pyratok_jax.data.world.vocabulary import COLOURS
from pyratok_jax.generator.loading import SHIPPED

MOST_BYTES = 16 << 20
PROMPTS = tuple(f"A large {colour} circle does not move." for colour in COLOURS)


@pytest.fixture(scope="module")
def generator():
    return pt.load_generator("builtin:world")


def test_it_is_small_and_has_a_card():
    files = {path.name: path.stat().st_size for path in SHIPPED.iterdir()}
    assert sum(files.values()) < MOST_BYTES
    parts = {"model.safetensors", "generator.json", "training_config.json", "README.md"}
    assert parts == files.keys()


def hue_distance(video: np.ndarray, colour: str) -> float:
    """How far the most saturated pixels are from a colour, as directions around grey."""
    pixels = video.reshape(-1, 3).astype(float)
    spread = pixels - pixels.mean(axis=1, keepdims=True)
    strength = np.linalg.norm(spread, axis=1)
    strongest = spread[np.argsort(strength)[-len(pixels) // 50 :]].mean(axis=0)
    wanted = np.array(COLOURS[colour], float)
    wanted -= wanted.mean()
    return -float(strongest @ wanted / np.linalg.norm(strongest) / np.linalg.norm(wanted))


def test_prompts_decide_the_colour(generator):
    """The control: against the prompts of others the same films are at chance."""
    clips = generator.generate(PROMPTS, seed=5, batch=8)
    films = [np.asarray(generator.decode(clip)) for clip in clips]
    assert all(film.shape == (9, 64, 64, 3) and film.dtype == np.uint8 for film in films)
    distance = np.array([[hue_distance(film, colour) for colour in COLOURS] for film in films])
    right = distance.argmin(axis=1) == np.arange(len(COLOURS))
    assert right.mean() >= 0.75, f"{right.sum()} of {len(right)}"  # Chance: one in eight.
    rank = distance.argsort(axis=1).argsort(axis=1)
    assert np.diag(rank).mean() < 1.5 < np.diag(np.roll(rank, 3, axis=1)).mean()
    # The reader finds things in most of them.
    assert np.mean([len(read_video(film)) > 0 for film in films]) >= 0.5


def growth(film: np.ndarray, colour: str) -> float:
    """Logarithm of how much more of a colour the last frames have than the first ones."""
    spread = film.astype(float) - film.mean(axis=-1, keepdims=True)
    wanted = np.array(COLOURS[colour], float)
    wanted -= wanted.mean()
    amount = np.maximum(spread @ wanted / np.linalg.norm(wanted) - 30, 0).sum(axis=(1, 2))
    return float(np.log((amount[-3:].mean() + 1) / (amount[:3].mean() + 1)))


def test_prompts_decide_the_motion(generator):
    """Things that are to grow and to shrink do so."""
    colours = list(COLOURS)[:4]
    prompts = [f"A medium {c} circle {verb}." for verb in ("grows", "shrinks") for c in colours]
    films = [generator.decode(clip) for clip in generator.generate(prompts, seed=5, batch=8)]
    found = [growth(np.asarray(f), c) for f, c in zip(films, colours * 2, strict=True)]
    grown, shrunk = np.array(found[:4]), np.array(found[4:])
    assert np.mean(grown > shrunk) >= 0.75, found
    assert grown.mean() > 0.5 and shrunk.mean() < -0.5, found


def test_a_stream_goes_on_beyond_the_training(generator):
    parts = list(generator.stream(PROMPTS[0], frames=33, seed=1))
    assert sum(len(part) for part in parts) == 33
