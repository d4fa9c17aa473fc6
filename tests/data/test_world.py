"""The procedural world: its truth is true, its films are functions of the seed, splits differ."""

import numpy as np
import pytest

from pyratok_jax.data.config import data_config
from pyratok_jax.data.pipeline import make_loader
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.files import probe
from pyratok_jax.data.world.films import HELDOUT_KINDS, SPLITS, world_film
from pyratok_jax.data.world.scenes import KINDS, draw_scene
from pyratok_jax.data.world.sentences import caption, relation
from pyratok_jax.data.world.vocabulary import (
    COLOURS,
    MOTIONS,
    SEEN_SHAPES,
    SHAPES,
    UNSEEN_SENTENCES,
    UNSEEN_SHAPES,
    UNSEEN_VERBS,
    VERBS,
    seen_names,
    unseen_names,
)
from pyratok_jax.errors import UserError

FILMS = [world_film("world", number) for number in range(60)]


def test_a_film_is_a_function_of_seed_split_and_number():
    again = world_film("world", 7)
    assert again == FILMS[7]
    np.testing.assert_array_equal(again.draw(9, 64, 64), FILMS[7].draw(9, 64, 64))
    assert world_film("world", 7, seed=1) != FILMS[7]
    assert world_film("world-heldout", 8) != world_film("world", 8)


def test_pixels_of_a_mask_have_the_colour_of_the_thing():
    for film in FILMS:
        drawn = film.film(5, 96, 96)
        for thing, mask in zip(film.scene.things, drawn.masks, strict=True):
            pixels = drawn.frames[mask].astype(float)
            if len(pixels) < 60:  # hidden behind others
                continue
            mean = pixels.mean(axis=0)
            distance = {
                name: min(np.abs(mean - light * np.array(rgb)).sum() for light in (1, 0.9, 0.8))
                for name, rgb in COLOURS.items()
            }
            assert min(distance, key=distance.get) == thing.colour, (film.caption, mean)


def test_boxes_bound_masks_and_masks_do_not_overlap():
    for film in FILMS[:20]:
        drawn = film.film(5, 64, 48)
        assert drawn.masks.shape[1:] == (5, 64, 48)
        assert drawn.masks.sum(axis=0).max() <= 1
        for masks, boxes in zip(drawn.masks, drawn.boxes, strict=True):
            for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
                inside = mask[top:bottom, left:right]
                assert inside.sum() == mask.sum()
                if mask.any():
                    edges = inside[0], inside[-1], inside[:, 0], inside[:, -1]
                    assert all(edge.any() for edge in edges)


def test_captions_name_every_thing_and_say_nothing_untrue():
    for film in FILMS:
        words = film.caption.lower()
        said = {verb for forms in VERBS.values() for pair in forms for verb in pair}
        told = {m for m in MOTIONS for pair in VERBS[m] for verb in pair if verb in words}
        assert said and told >= {thing.motion for thing in film.scene.things}
        for thing in film.scene.things:
            assert thing.colour in words and thing.shape in words
        colours = {colour for colour in COLOURS if colour in words}
        assert colours == {thing.colour for thing in film.scene.things}


@pytest.mark.parametrize("motion", ["left", "right", "up", "down", "growing", "shrinking"])
def test_tracks_move_as_the_word_says(motion):
    rng, found = np.random.default_rng(0), 0
    while found < 5:
        scene = draw_scene(rng, count=1)
        if scene.things[0].motion != motion:
            continue
        x, y, size, _, _ = scene.things[0].pose(np.linspace(0, 1, 5))
        change = {"left": -x, "right": x, "up": -y, "down": y,
                  "growing": size, "shrinking": -size}[motion]  # fmt: skip
        assert (np.diff(change) > 0).all()
        found += 1


def test_a_blinking_thing_is_absent_in_some_frames_and_a_spinning_one_changes():
    for wanted in ("blinking", "spinning", "still"):
        film = next(f for f in (world_film("world", n) for n in range(400))
                    if [t.motion for t in f.scene.things] == [wanted]
                    and f.scene.backdrops[0].pan == (0.0, 0.0))  # fmt: skip
        drawn = film.film(9, 64, 64)
        seen = drawn.masks[0].any(axis=(1, 2))
        assert seen.any() and (not seen.all()) == (wanted == "blinking")
        moved = (drawn.frames[0] != drawn.frames[3]).any()
        assert moved == (wanted != "still")


def test_relations_hold_in_every_frame():
    found = 0
    for film in FILMS:
        sentence = relation(film.scene.things)
        if not sentence:
            continue
        found += 1
        names = {t.name: t for t in film.scene.things}
        first, second = (next(n for n in names if part.strip().startswith(f"the {n}"))
                         for part in _halves(sentence))  # fmt: skip
        times = np.linspace(0, 1, 17)
        (ax, ay, *_), (bx, by, *_) = names[first].pose(times), names[second].pose(times)
        holds = {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}
        assert next(v for k, v in holds.items() if f" is {k} the" in sentence).all()
    assert found > 5


def _halves(sentence):
    first, second = sentence.split(" is ")
    return first, "the " + second.split(" the ")[1]


def test_training_shows_no_held_out_pair_shape_or_wording():
    assert len(seen_names()) + len(unseen_names()) == len(COLOURS) * len(SEEN_SHAPES)
    for names in (seen_names(), unseen_names()):
        assert {n.split()[0] for n in names} == set(COLOURS)
        assert {n.split()[1] for n in names} == set(SEEN_SHAPES)
    held = [verb for pair in UNSEEN_VERBS.values() for verb in pair]
    for film in (world_film("world", n) for n in range(300)):
        assert {t.name for t in film.scene.things} <= set(seen_names())
        assert not any(verb in film.caption.split() for verb in held)
        assert not any(s.split("{")[0] and film.caption.startswith(s.split("{")[0])
                       for s in UNSEEN_SENTENCES)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_held_out_film_holds_out_what_it_says(kind):
    rng = np.random.default_rng(1)
    scenes = [draw_scene(rng, kind) for _ in range(30)]
    names = {t.name for scene in scenes for t in scene.things}
    shapes = {t.shape for scene in scenes for t in scene.things}
    if kind == "combination":
        assert names <= set(unseen_names())
    elif kind == "object":
        assert shapes == set(UNSEEN_SHAPES)
    else:
        assert names <= set(seen_names())
    if kind == "phrasing":
        text = caption(scenes[0], rng)
        assert any(UNSEEN_VERBS[t.motion][0].split()[0] in text or
                   UNSEEN_VERBS[t.motion][1].split()[0] in text
                   for t in scenes[0].things)  # fmt: skip


def test_questions_have_their_answer_among_four_options():
    for film in FILMS:
        assert film.questions
        for question in film.questions:
            assert len(set(question.options)) == 4 and question.answer in question.options


def test_every_word_occurs():
    things = [t for n in range(1500) for t in world_film("world", n).scene.things]
    assert {t.colour for t in things} == set(COLOURS) and len(COLOURS) >= 8
    assert {t.shape for t in things} == set(SEEN_SHAPES) and len(SHAPES) >= 8
    assert {t.motion for t in things} == set(MOTIONS)
    assert {t.texture for t in things} == {"plain", "striped", "dotted"}


def test_the_training_pipeline_draws_films_in_the_bucket_s_shape():
    config = data_config(sources=("builtin:world",), buckets=("9x64x64", "5x32x64"),
                         caption_dropout=0.0, mirror=True, zoom=1.5)  # fmt: skip
    loader = make_loader(config, seed=3, batch_size=2)
    batches = [next(loader) for _ in range(4)]
    loader.close()
    assert {b["bucket"] for b in batches} == {"9x64x64", "5x32x64"}
    for batch in batches:
        shape = tuple(int(n) for n in batch["bucket"].split("x"))
        for video, name, text in zip(batch["video"], batch["ids"], batch["captions"], strict=True):
            film = world_film("world", int(name.split("/")[1]))
            assert text == film.caption
            np.testing.assert_array_equal(video, film.draw(*shape))


def test_sources_by_name_and_a_record_as_a_file():
    records = load_source("builtin:world-heldout")
    assert len(records) == SPLITS["world-heldout"]
    assert [records[i].id.split("/")[0] for i in range(8)] == list(HELDOUT_KINDS)
    assert load_source("builtin:world#5")[3].caption == world_film("world", 3, seed=5).caption
    assert records[-1].id == records[len(records) - 1].id
    info = probe(records[0].media)
    assert (info.height, info.width, info.frames) == (96, 96, 17)
    with pytest.raises(IndexError):
        records[len(records)]
    with pytest.raises(UserError, match="builtin:world-heldout"):
        load_source("builtin:words")
