"""The reader of world videos: right on drawn films, and not fooled by others."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from pyratok_jax.data.world.films import world_film
from pyratok_jax.data.world.prompts import heldout_prompts, readable, things_of
from pyratok_jax.data.world.reader import Faithfulness, Seen, compare, read_video
from pyratok_jax.data.world.tracks import find_tracks
from pyratok_jax.data.world.vocabulary import COLOURS

FIELDS = [field.name for field in dataclasses.fields(Faithfulness)]
SIZE = 9, 64, 64


def films(count, seed):
    """Drawn training films that are readable, of a seed that the rules were not made on."""
    found, number = [], 0
    while len(found) < count:
        film = world_film("world", number, seed)
        drawn = film.film(*SIZE)
        if readable(film, drawn):
            found.append((film, drawn.frames))
        number += 1
    return found


def share_right(films, seen):
    right = [compare(things_of(film), one) for (film, _), one in zip(films, seen, strict=True)]
    return {name: np.mean([getattr(one, name) for one in right]) for name in FIELDS}


@pytest.fixture(scope="module")
def true_films():
    return films(100, seed=41)


@pytest.fixture(scope="module")
def seen(true_films):
    return [read_video(frames) for _, frames in true_films]


def test_true_films_are_read_right(true_films, seen):
    motions = {thing.motion for film, _ in true_films for thing in things_of(film)}
    assert len(motions) == 10
    assert {len(things_of(film)) for film, _ in true_films} >= {1, 2}
    assert min(share_right(true_films, seen).values()) >= 0.99


@pytest.mark.parametrize(("blur", "least"), [(0.7, 0.95), (1.6, 0.9)])
def test_soft_and_noisy_films_as_a_tokenizer_leaves_them_are_still_read(true_films, blur, least):
    rng, worn = np.random.default_rng(0), []
    for _, frames in true_films:
        soft = ndimage.gaussian_filter(frames.astype(float), (0, blur, blur, 0))
        noisy = soft + rng.normal(0, 6, soft.shape)
        worn.append(read_video(np.clip(noisy, 0, 255).astype(np.uint8)))
    assert share_right(true_films, worn)["everything"] >= least


def test_fringes_specks_and_pale_traces_are_no_things():
    film = next(pair for pair in films(20, seed=41) if len(things_of(pair[0])) == 1)
    asked, frames = things_of(film[0]), film[1].copy()
    (track,) = find_tracks(frames)
    other = COLOURS["green" if track.colour != "green" else "red"]
    for number, mask in zip(track.frames, track.masks, strict=True):
        edge = ndimage.binary_dilation(mask, iterations=2) & ~ndimage.binary_dilation(mask)
        frames[number][edge] = other
    frames[3:5, 2:5, 2:5] = other  # 9 of 4,096 pixels, in two frames
    away = np.argmin(track.masks.any(axis=0).sum(axis=1))
    pale = (0.3 * np.array(COLOURS[track.colour]) + 0.7 * 128).astype(np.uint8)
    frames[2:5, away : away + 3, -14:-2] = pale
    seen = compare(asked, read_video(frames))
    assert seen.colour and seen.count and seen.motion


def test_films_of_other_prompts_are_found_to_be_wrong(true_films, seen):
    share = share_right(true_films, seen[1:] + seen[:1])
    assert share["everything"] <= 0.03
    assert share["count"] > 0.3  # Half of the films have one thing.


def test_a_changed_film_is_told_from_its_prompt(true_films):
    film, frames = next(
        pair for pair in true_films if [t.motion for t in things_of(pair[0])] == ["left"]
    )
    asked = things_of(film)
    assert compare(asked, read_video(frames)).everything
    backwards = compare(asked, read_video(frames[::-1]))
    assert not backwards.motion and not backwards.everything
    assert backwards.colour and backwards.shape and backwards.count
    frozen = read_video(np.repeat(frames[4:5], 9, axis=0))
    assert [thing.motion for thing in frozen] == ["still"]
    swapped = compare(asked, read_video(frames[..., [1, 2, 0]]))
    assert not swapped.colour and swapped.count
    twice = np.concatenate([frames, frames], axis=2)
    assert not compare(asked, read_video(twice)).count


def test_nothing_is_seen_where_nothing_is():
    assert read_video(np.full((9, 64, 64, 3), 128, np.uint8)) == ()
    grey = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 1), np.uint8)
    assert read_video(np.repeat(grey, 3, axis=-1)) == ()
    assert compare([Seen("red", "circle", "left")], ()) == Faithfulness(*[False] * 5)
    with pytest.raises(ValueError, match="too few"):
        read_video(np.zeros((4, 64, 64, 3), np.uint8))


def test_prompts_are_those_of_readable_held_out_films():
    prompts = heldout_prompts(12, *SIZE[:2])
    assert prompts == heldout_prompts(12, *SIZE[:2])
    for prompt in prompts:
        film = world_film("world-heldout", prompt.number)
        assert prompt.text == film.caption and prompt.things == things_of(film)
        assert film.scene.cut is None and film.scene.kind == prompt.kind != "object"
