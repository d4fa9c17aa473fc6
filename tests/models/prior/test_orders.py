"""The three orders: who sees what, cached and uncached states, samples of any batch size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.models.prior import blocks, masked, raster
from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.config import Sampling
from pyratok_jax.models.prior.latents import known_latents
from pyratok_jax.models.prior.layout import Layout, Visibility
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.models.prior.sampling import Given, row_keys, stacked
from pyratok_jax.models.prior.transformer import remember
from pyratok_jax.models.pyratok.quantizers.base import Quantizer
from pyratok_jax.models.pyratok.synthesis import Synthesis
from tests.models.prior.tiny import BITS, LATENT, LAYOUT, STRIDES, codes, prior, text


class Syntheses(Quantizer):
    """The synthesis of a tokenizer of three levels, its smoothing not zero."""

    def __init__(self, rngs):
        self.levels = nnx.List(Synthesis(s, LATENT, BITS, 3, 4, rngs=rngs) for s in STRIDES)
        for level in self.levels:
            kernel = level.smooth_out.kernel
            kernel[...] = 0.3 * jax.random.normal(rngs.params(), kernel.shape)

    def quantize(self, inputs):
        raise NotImplementedError

    def fit_to(self, data):
        raise NotImplementedError

    def synthesize(self, codes, cache=None):
        return sum(level(q, cache) for level, q in zip(self.levels, codes, strict=True))


def changed_by(run, x, count, change):
    """(n, count): whether each output token changes when the j-th part of one row's input does."""
    rows = jnp.concatenate([x, *(change(x, j) for j in range(count))])
    states = np.asarray(jax.jit(run)(rows))
    return (states[1:] != states[:1]).any(-1).T


def flip_token(x, j):
    return x.at[:, j].multiply(-1)


def move_frame(x, j):
    return x.at[:, j].add(1.0)


def many(condition, rows):
    """The first row's condition for every row."""
    text = condition.text
    return dataclasses.replace(
        condition,
        rows=rows, text=text._replace(embeddings=text.embeddings[np.zeros(rows, int)],
                                      mask=text.mask[np.zeros(rows, int)])
    )  # fmt: skip


def test_raster_sees_the_past_alone():
    model, n = prior("raster"), LAYOUT.size
    sees = changed_by(
        lambda q: model.raster(q, many(text(1), len(q)), LAYOUT), codes(1), n, flip_token
    )
    np.testing.assert_array_equal(sees, np.tri(n, k=-1, dtype=bool))


def test_blocks_see_their_part_and_finished_groups():
    model = prior("blocks")
    true = codes(1)
    latents = known_latents(Syntheses(nnx.Rngs(1)).synthesize, LAYOUT.split(true))
    part, group, frames = LAYOUT.part, LAYOUT.group, np.arange(LAYOUT.groups)

    def states(own, context, coarse):
        rows = max(len(own), len(context), *map(len, coarse))
        own, context, *coarse = (
            jnp.broadcast_to(x, (rows, *x.shape[1:])) for x in (own, context, *coarse)
        )
        share = jnp.full((rows, 9), 0.5)
        return model.blocks(own, share, tuple(coarse), context, many(text(1), rows), LAYOUT)

    first, second, whole = latents
    sees = changed_by(lambda q: states(q, whole, (first, second)), true, LAYOUT.size, flip_token)
    np.testing.assert_array_equal(sees, part[:, None] == part[None])
    sees = changed_by(lambda z: states(true, z, (first, second)), whole, 3, move_frame)
    np.testing.assert_array_equal(sees, frames[None] < group[:, None])
    own = frames[None] == group[:, None]
    sees = changed_by(lambda z: states(true, whole, (z, second)), first, 3, move_frame)
    np.testing.assert_array_equal(sees, own & (LAYOUT.level == 1)[:, None])
    sees = changed_by(lambda z: states(true, whole, (first, z)), second, 3, move_frame)
    np.testing.assert_array_equal(sees, own & (LAYOUT.level == 2)[:, None])


def test_the_latent_of_some_levels_does_not_know_finer_ones_or_later_frames():
    synthesis = Syntheses(nnx.Rngs(1))
    levels = LAYOUT.split(codes(1))
    other = LAYOUT.split(codes(1, seed=1))
    first = known_latents(synthesis.synthesize, levels)
    np.testing.assert_array_equal(
        first[0], known_latents(synthesis.synthesize, (levels[0], *other[1:]))[0]
    )
    np.testing.assert_array_equal(first[-1], synthesis.synthesize(levels))
    late = tuple(
        jnp.concatenate([q[:, :-n], r[:, -n:]], 1)
        for q, r, n in zip(levels, other, (4, 2, 1), strict=True)
    )
    changed = known_latents(synthesis.synthesize, late)
    for a, b in zip(first, changed, strict=True):
        np.testing.assert_array_equal(a[:, :2], b[:, :2])
        assert np.abs(a[:, 2] - b[:, 2]).max() > 0


def test_masked_sees_everything_and_the_prefix():
    model = prior("masked")

    def run(q):
        rows = len(q)
        return model.masked(q, jnp.full((rows,), 0.5), many(text(1), rows), LAYOUT)

    assert changed_by(run, codes(1), LAYOUT.size, flip_token).all()
    half = jnp.full((2,), 0.5)
    states = nnx.jit(lambda model, text: model.masked(codes(2), half, text, LAYOUT))
    a, b = (np.asarray(states(model, text(2, seed))) for seed in (0, 1))
    changed = np.abs(a - b).max((1, 2))
    assert changed[0] > 0 and changed[1] == 0  # The second row has no caption.


def test_cached_states_of_raster_are_the_uncached():
    model, condition, true = prior("raster"), text(2), codes(2)
    slots = LAYOUT.slots
    used = len(slots.token) - 1

    @nnx.jit
    def walk(model: Prior):
        token = np.maximum(slots.token[:used], 0)
        x = model.raster_input(true[:, token], slots.token[:used] < 0, slots.level[:used])
        places = jnp.asarray(slots.places)

        def step(memory, slot):
            seen = Visibility(slot[None], slot[None] + 1, jnp.full((1,), -1))
            valid = jnp.ones((2, 1), bool)
            own = jax.lax.dynamic_slice_in_dim(x, slot, 1, 1)
            hidden, new = model.transformer.extend(
                own, places[slot][None, None], seen, valid, memory
            )
            return remember(memory, new, seen, valid), hidden[:, 0]

        return jax.lax.scan(step, model.start(condition, used), jnp.arange(used))[1]

    cached = jnp.moveaxis(walk(model), 0, 1)[:, slots.predicting]
    whole = nnx.jit(lambda model: model.raster(true, condition, LAYOUT))(model)
    np.testing.assert_allclose(cached, whole, atol=2e-5)


def draw_raster(model, condition, keys, sampling, given=None):
    state = raster.raster_start(model, condition, rows=keys.shape[0], layout=LAYOUT)
    found = []
    for _ in range(raster.raster_chunks(LAYOUT)):
        state, part = raster.raster_chunk(
            model, state, keys, given, layout=LAYOUT, sampling=sampling
        )
        found.append(part)
    return raster.raster_tokens(found, LAYOUT)


def draw_blocks(model, condition, keys, sampling, known=()):
    quantizer = Syntheses(nnx.Rngs(1))
    size = dict(groups=LAYOUT.groups, layout=LAYOUT)
    state = blocks.blocks_start(model, condition, **size)
    found = []
    for group in range(LAYOUT.groups):
        if group < len(known):
            part = known[group]
            state = blocks.blocks_given(
                model, quantizer, state, part, guided=sampling.guided, **size
            )
        else:
            state, part = blocks.blocks_group(
                model, quantizer, state, keys, sampling=sampling, **size
            )
        found.append(part)
    levels = [jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True)]
    return jnp.concatenate([x.reshape(x.shape[0], -1, BITS) for x in levels], axis=1)


def draw_masked(model, condition, keys, sampling, given=None):
    state = masked.masked_start(keys.shape[0], BITS, LAYOUT, given)
    for level in range(3):
        state = masked.masked_level(
            model, state, condition, keys, level, layout=LAYOUT, sampling=sampling
        )
    assert state.known.all()
    return state.codes


DRAW = {"raster": draw_raster, "blocks": draw_blocks, "masked": draw_masked}


def rows_of(condition, rows):
    text = condition.text
    return dataclasses.replace(
        condition,
        rows=len(rows),
        text=text._replace(embeddings=text.embeddings[rows], mask=text.mask[rows]),
    )


@pytest.mark.parametrize("kind", ["none", "classes"])
def test_a_prior_without_text_draws_under_jit(kind):
    """The number of rows is static: it is the only shape that such a condition has."""
    model = prior("raster", condition=kind, classes=3)
    classes = jnp.array([1, -1]) if kind == "classes" else None
    condition = Condition(2, classes=classes)
    both = stacked(condition, Condition(2, classes=None if classes is None else -(classes**0)))
    state = raster.raster_start(model, both, rows=2, layout=LAYOUT)
    assert state.memory.valid.shape[0] == 4
    first = state.memory.keys[:, :, 0]
    # Rows without a class have the null, which a class differs from.
    assert np.array_equal(first[:, 1], first[:, 2])
    assert np.array_equal(first[:, 0], first[:, 1]) == (kind == "none")


@pytest.mark.parametrize(
    "order", ["raster", "masked", pytest.param("blocks", marks=pytest.mark.slow)]
)
def test_a_sample_is_the_same_in_any_batch(order):
    model, sampling = prior(order), Sampling(steps=(3, 2), guidance=2.0, temperature=(1.0, 0.8))
    rows = np.arange(3)
    condition, nothing = text(3), rows_of(text(3), np.array([2, 2, 2]))
    together = DRAW[order](model, stacked(condition, nothing), row_keys(0, rows), sampling)
    assert set(np.unique(together)) == {-1.0, 1.0}
    # Another size, and (where programs take long to compile) another place among other rows.
    some = np.array([1]) if order == "raster" else np.array([2, 0, 1])
    one = stacked(rows_of(condition, some), rows_of(nothing, some))
    other = DRAW[order](model, one, row_keys(0, some), sampling)
    np.testing.assert_array_equal(together[some], other)
    assert (together[0] != together[1]).any()


def test_cold_raster_samples_are_the_predictions_of_the_training_pass():
    model, sampling = prior("raster"), Sampling(temperature=(0.0,))
    drawn = draw_raster(model, text(2), row_keys(0, np.arange(2)), sampling)
    run = nnx.jit(lambda model, drawn: model.head.predict(model.raster(drawn, text(2), LAYOUT)))
    predicted = run(model, drawn)
    np.testing.assert_array_equal(drawn, predicted)


def test_cold_blocks_in_one_step_are_the_predictions_of_the_training_pass():
    """KV cache, caches of the synthesis, and positions of each group, all against one pass.

    With a window, only the last group's context is kept, in a memory that does not grow.
    """
    model, sampling = prior("blocks", window=1), Sampling(temperature=(0.0,), steps=(1,))
    keys, synthesis = row_keys(0, np.arange(2)), Syntheses(nnx.Rngs(1))
    drawn = draw_blocks(model, text(2), keys, sampling)

    @nnx.jit
    def predicted(model, synthesis, drawn):
        latents = known_latents(synthesis.synthesize, LAYOUT.split(drawn))
        nothing, share = jnp.zeros_like(drawn), jnp.ones((2, 9))
        hidden = model.blocks(nothing, share, latents, latents[-1], text(2), LAYOUT)
        return model.head.predict(hidden)

    np.testing.assert_array_equal(drawn, predicted(model, synthesis, drawn))
    levels = LAYOUT.split(drawn)
    continued = draw_blocks(model, text(2), keys, sampling, [tuple(q[:, :1] for q in levels)])
    np.testing.assert_array_equal(drawn, continued)


def test_given_tokens_are_kept():
    true, keys = codes(2, seed=9), row_keys(0, np.arange(2))
    sampling = Sampling(steps=(2,))
    given = Given(true, LAYOUT.group < 2)
    for order in ("raster", "masked"):
        drawn = DRAW[order](prior(order), text(2), keys, sampling, given)
        np.testing.assert_array_equal(drawn[:, LAYOUT.group < 2], true[:, LAYOUT.group < 2])
        assert (drawn != true).any()


def test_one_picture_is_a_clip_of_one_group():
    still = Layout(((1, 1, 2), (1, 1, 2), (1, 2, 4)), STRIDES, LATENT)
    model, true = prior("blocks"), codes(1, layout=still)

    def states(true):
        latents = known_latents(Syntheses(nnx.Rngs(1)).synthesize, still.split(true))
        return model.blocks(true, jnp.ones((1, 3)), latents, latents[-1], text(1), still)

    assert jax.eval_shape(states, true).shape == (1, 12, 32)
