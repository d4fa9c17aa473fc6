"""`builtin:world`: what the shipped tokenizer's tokens say of held-out videos of the world."""

import dataclasses
import runpy

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pyratok_jax as pt
from pyratok_jax.data.world.films import WorldFilm
from pyratok_jax.data.world.sentences import caption
from pyratok_jax.data.world.vocabulary import seen_names, unseen_names
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.world_set import classes, single
from pyratok_jax.losses.autoregressive import caption_nats, make_prompts
from pyratok_jax.losses.text import peak_cosines
from pyratok_jax.models.pyratok.lfq import ids_to_bits
from pyratok_jax.tokenizer.loading import tokenizer_folder
from pyratok_jax.training.system import tokenizer_config

VIDEOS = 48


@pytest.fixture(scope="module")
def tokenizer():
    return pt.load_tokenizer("builtin:world")


@pytest.fixture(scope="module")
def videos():
    """Videos of colours and shapes that training has never shown together, and their classes."""
    names = classes(unseen_names())
    rng = np.random.default_rng(20)
    labels = np.arange(VIDEOS) % len(names)
    films = [WorldFilm(single(rng, names[i]), "", ()) for i in labels]
    return names, labels, np.stack([film.draw(9, 64, 64) for film in films])


def test_its_tokens_name_what_is_to_be_seen(tokenizer, videos):
    names, labels, clips = videos
    said = [f"A video of {'an' if name[0] in 'aeiou' else 'a'} {name}." for name in names]
    queries = jnp.asarray(tokenizer.text_features(said))
    ids = tokenizer.encode(clips).ids
    first = jnp.asarray(tokenizer.code_embeddings(ids)[0])

    def named(features):
        flat = features.reshape(len(features), -1, features.shape[-1])
        return peak_cosines(flat, queries).argmax(axis=1)

    found = named(first)
    right = np.mean(found == labels)
    # docs/proof.md: seven in ten of 144 videos.
    assert right > 0.55
    others = np.random.default_rng(0).permutation(labels)
    assert np.mean(found == others) < 2.5 / len(names)
    # What lies across tokens has its share in that.
    alone = nnx.clone(tokenizer.alignment)
    alone.text_near[0].kernel[...] = jnp.zeros_like(alone.text_near[0].kernel[...])
    codes = ids_to_bits(jnp.asarray(ids[0], jnp.uint32), tokenizer.config.bits)
    assert np.mean(named(alone.text_embed(codes, 0)) == labels) < right - 0.1


def test_a_decoded_video_is_nearest_to_its_own(tokenizer, videos):
    clips = videos[2][:8].astype(float)
    rebuilt = tokenizer.decode(tokenizer.encode(videos[2][:8])).astype(float)
    errors = np.mean((rebuilt[:, None] - clips[None]) ** 2, axis=(2, 3, 4, 5))
    assert np.all(errors.argmin(axis=1) == np.arange(8))


def test_a_decoded_video_is_far_better_than_a_flat_picture(tokenizer, videos):
    clips = videos[2][:8].astype(float)
    rebuilt = tokenizer.decode(tokenizer.encode(videos[2][:8])).astype(float)
    flat = clips.mean(axis=(1, 2, 3), keepdims=True)
    errors, spreads = (np.mean((x - clips) ** 2, axis=(1, 2, 3, 4)) for x in (rebuilt, flat))
    gain = 10 * np.log10(spreads / errors)
    assert gain.mean() > 6.0  # dB; docs/proof.md: 8


def test_its_tokens_are_better_predicted_from_their_own_caption(tokenizer):
    """By the head that ships with it; docs/proof.md has the figure of 48 videos."""
    names, rng = classes(seen_names()), np.random.default_rng(5)
    scenes = [single(rng, name) for name in names]
    clips = np.stack([WorldFilm(scene, "", ()).draw(9, 64, 64) for scene in scenes])
    ids = tokenizer.encode_padded(clips)
    codes = tuple(ids_to_bits(jnp.asarray(x), tokenizer.config.bits) for x in ids)
    words, mask = map(jnp.asarray, tokenizer.captions([caption(x, rng) for x in scenes]))
    own = nnx.jit(make_prompts)(tokenizer.model, tokenizer.text, words, mask)

    @nnx.jit
    def measure(alignment, model, codes, own):
        return caption_nats(alignment, model, codes, own, 96, layers=6)

    found = measure(tokenizer.alignment, tokenizer.text.language_model, codes, own)
    assert float(found["gain/level_1"]) > 0.2
    assert float(found["own/level_1"]) < 0.5 * 16 * np.log(2)


def test_the_demo_that_starts_from_it_has_its_first_level(tokenizer):
    config, own = runpy.run_path("configs/demo.py")["get_config"](), tokenizer.config
    assert config.init_from == "builtin:world" and config.init_levels == 1
    wanted = tokenizer_config(config, own.vae, own.text_width)
    assert wanted.grids[0] == own.grids[0]
    assert wanted.inputs_by_level[0] == own.inputs_by_level[0]
    assert dataclasses.replace(
        wanted, lora_rank=own.lora_rank, lora_alpha=own.lora_alpha, grids=own.grids,
        inputs=own.inputs,
    ) == own  # fmt: skip


def test_other_names_are_refused():
    with pytest.raises(UserError, match="builtin:world"):
        pt.load_tokenizer("builtin:moon")


def test_it_is_named_and_not_placed(tokenizer):
    # A prior that is trained on its tokens finds it on another machine.
    assert tokenizer.folder is None
    assert tokenizer_folder("builtin:world").joinpath("README.md").is_file()
