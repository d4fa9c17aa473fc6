"""The autoregressive loss: what it counts, where gradients go, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pyratok_jax.checkpoints.pretrained import load_language
from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.losses import autoregressive
from pyratok_jax.losses.autoregressive import Prompts, autoregressive_loss, caption_nats
from pyratok_jax.losses.codebook import entropy
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.config import tiny
from pyratok_jax.models.language.model import LanguageModel, TextEncoder
from pyratok_jax.models.pyratok.lfq import quantize
from pyratok_jax.models.pyratok.regions import spread_tokens
from pyratok_jax.nn.grids import grid_shape
from pyratok_jax.nn.settings import PRESETS

GRIDS = ((5, 1, 1), (3, 2, 2), (2, 2, 2))
BITS = 4


def _parts(**changes):
    config = tiny(**changes)
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    alignment = Alignment(BITS, len(GRIDS), config.width, rngs=nnx.Rngs(1))
    key = jax.random.key(2)
    logits = tuple(jax.random.normal(key, (3, *grid, BITS)) for grid in GRIDS)
    ids = jax.random.randint(key, (3, 6), 0, config.vocabulary)
    mask = jnp.arange(6) < jnp.array([6, 3, 0])[:, None]
    return model, alignment, logits, ids, mask


def _codes(logits):
    return tuple(quantize(z) for z in logits)


@nnx.jit
def _loss(alignment, model, codes, ids, mask):
    return autoregressive_loss(alignment, model, codes, (ids, mask))


@nnx.jit
def _read(model, ids, mask):
    return TextEncoder(model).read(ids, mask)


@pytest.mark.parametrize("mrope", [(), (1, 1, 2)])
def test_equals_one_pass_over_the_whole_sequence(mrope):
    """Text and codes in one uncached pass per row, without padding; only codes are counted."""
    model, alignment, logits, ids, mask = _parts(mrope_section=mrope)
    alignment.head.kernel[...] = jax.random.normal(jax.random.key(4), alignment.head.kernel.shape)
    codes = _codes(logits)
    loss, metrics = _loss(alignment, model, codes, ids, mask)

    @nnx.jit(static_argnames=("row", "length"))
    def one_pass(alignment, model, row, length):
        sequence = alignment.sequence(tuple(q[row : row + 1] for q in codes))
        text = model.embed(ids[row : row + 1, :length])
        inputs = jnp.concatenate([text, sequence.inputs], axis=1)
        positions = None
        if mrope:
            words = np.broadcast_to(np.arange(length), (3, length))
            positions = jnp.concatenate([words, length + sequence.positions], axis=1)[:, None]
        hidden = model(inputs, None, positions).hidden[:, length:]
        nats = alignment.cross_entropy(hidden, sequence.targets, sequence.separator)
        return nats[:, np.flatnonzero(sequence.predicts)]

    lengths = [int(count) for count in mask.sum(axis=1)]
    rows = [one_pass(alignment, model, row, length) for row, length in enumerate(lengths)]
    np.testing.assert_allclose(loss, np.mean(np.concatenate(rows)), rtol=1e-5)
    assert rows[0].shape == (1, 5 + 12 + 8)  # Separators are not predicted.
    per_level = [metrics[f"level_{n}"] for n in (1, 2, 3)]
    first = np.concatenate([np.asarray(r)[0, :5] for r in rows]).mean()
    np.testing.assert_allclose(per_level[0], first, rtol=1e-5)
    assert metrics["tokens"] == 25


def test_text_changes_the_loss_and_padding_does_not():
    model, alignment, logits, ids, mask = _parts()
    alignment.head.kernel[...] = jax.random.normal(jax.random.key(4), alignment.head.kernel.shape)
    codes = _codes(logits)
    base = _loss(alignment, model, codes, ids, mask)[0]
    assert _loss(alignment, model, codes, jnp.where(mask, ids, 7), mask)[0] == base
    other = _loss(alignment, model, codes, jnp.where(mask, ids + 1, ids) % 96, mask)[0]
    assert abs(other - base) > 1e-4


@pytest.mark.parametrize("head", ["lookup_free", "softmax"])
@pytest.mark.parametrize("mrope", [(), (1, 1, 2)])
def test_filling_the_sequence_up_changes_neither_loss_nor_gradient(mrope, head, monkeypatch):
    model, _, logits, ids, mask = _parts(mrope_section=mrope)
    alignment = Alignment(BITS, len(GRIDS), model.config.width, rngs=nnx.Rngs(1), head=head)
    alignment.head.kernel[...] = jax.random.normal(jax.random.key(4), alignment.head.kernel.shape)

    def measure(multiple):
        monkeypatch.setattr(autoregressive, "token_multiple", lambda: multiple)

        def loss(alignment, logits):
            # Straight-through targets are not for heads that read ids.
            targets = "fixed" if head == "softmax" else "straight_through"
            codes = _codes(logits)
            return autoregressive_loss(alignment, model, codes, (ids, mask), targets=targets)

        run = nnx.jit(nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        return nnx.pure(run(alignment, logits))

    want, got = jax.tree.leaves(measure(1)), jax.tree.leaves(measure(16))
    assert len(want) == len(got)
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6 * float(jnp.abs(a).max()))


def test_text_can_come_as_ids_embeddings_or_cache():
    model, alignment, logits, ids, mask = _parts()
    codes = _codes(logits)
    condition, cache = _read(model, ids, mask)
    losses = [
        nnx.jit(autoregressive_loss)(alignment, model, codes, text)[0]
        for text in ((ids, mask), (model.embed(ids), mask), cache)
    ]
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-6)
    plain = nnx.jit(lambda model, *text: model(*text).hidden)(model, ids, mask)
    np.testing.assert_allclose(condition.embeddings, plain, atol=1e-5)


def test_the_cache_of_a_full_pass_serves_the_first_layers():
    model, alignment, logits, ids, mask = _parts(layers=3)
    cache = _read(model, ids, mask)[1]

    @nnx.jit
    def loss(alignment, model, text):
        return autoregressive_loss(alignment, model, _codes(logits), text, layers=2)[0]

    got, want = loss(alignment, model, cache), loss(alignment, model, (ids, mask))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("targets", ["fixed", "straight_through"])
def test_gradients_reach_alignment_and_codes_alone(targets):
    model, alignment, logits, ids, mask = _parts()
    alignment.head.kernel[...] = jax.random.normal(jax.random.key(4), alignment.head.kernel.shape)

    def loss(alignment, logits):
        codes = _codes(logits)
        return autoregressive_loss(alignment, model, codes, (ids, mask), targets=targets)[0]

    grads, code_grads = nnx.jit(nnx.grad(loss, argnums=(0, 1)))(alignment, logits)
    for path, leaf in nnx.to_flat_state(grads):
        assert float(jnp.abs(leaf[...]).max()) > 0, path
    # The last token is only a target; every other token is an input.
    flat = [np.abs(g).max(axis=-1).reshape(3, -1) for g in code_grads]
    assert (flat[0] > 0).all() and (flat[1] > 0).all() and (flat[2][:, :-1] > 0).all()
    assert (flat[2][:, -1] > 0).all() == (targets == "straight_through")


def _learned(targets, steps=150):
    """Nats of level 1 given the word, after training codes that could say the word or noise."""
    words, noise, batch = 8, 24, 64
    model = LanguageModel(tiny(), rngs=nnx.Rngs(0))

    class Toy(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(3)
            self.code = nnx.Linear(words + noise, BITS, rngs=rngs)
            self.alignment = Alignment(BITS, 1, model.config.width, rngs=nnx.Rngs(1))

    toy = Toy()
    optimizer = nnx.Optimizer(toy, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(toy, optimizer, model, key):
        a, b = jax.random.split(key)
        word = jax.random.randint(a, (batch,), 0, words)
        said = 0.7 * jax.nn.one_hot(word, words) * words**0.5
        x = jnp.concatenate([said, jax.random.normal(b, (batch, noise))], axis=1)

        def loss(toy):
            z = toy.code(x).reshape(batch, 1, 1, 1, BITS)
            text = (word[:, None] + 10, jnp.ones((batch, 1), bool))
            value, metrics = autoregressive_loss(
                toy.alignment, model, (quantize(z),), text, targets=targets
            )
            return value + 0.3 * entropy(z, temperature=0.25)[0], metrics["level_1"]

        (_, nats), grads = nnx.value_and_grad(loss, has_aux=True)(toy)
        optimizer.update(toy, grads)
        return nats

    nats = [float(step(toy, optimizer, model, jax.random.key(i))) for i in range(steps)]
    return float(np.mean(nats[-10:]))


def test_straight_through_targets_make_codes_predictable_from_the_text():
    """Fixed targets leave codes at chance however long the head learns."""
    chance = BITS * np.log(2)
    fixed, passed = _learned("fixed"), _learned("straight_through")
    assert fixed > 0.85 * chance
    assert passed < 0.6 * chance


WORLD = ((4, 8), (1, 16), (2, 8), (4, 8))  # Of the shipped tokenizer.


@pytest.mark.parametrize(
    ("strides", "clip", "budget", "whole"),
    [
        (PRESETS["pyramid"], (17, 256, 256), 1500, True),
        (PRESETS["pyramid"], (17, 512, 512), 4096, False),
        (PRESETS["pyramid"], (49, 1024, 1024), 4096, False),
        (WORLD, (9, 64, 64), 400, True),
        (WORLD, (9, 64, 64), 64, False),
        (WORLD, (9, 64, 64), 48, False),
    ],
)
def test_the_budget_sees_every_level_every_frame_and_the_whole_area(strides, clip, budget, whole):
    grids = tuple(grid_shape(stride, *clip) for stride in strides)
    seen = [set() for _ in grids]
    for seed in range(40):
        chosen = spread_tokens(grids, budget, jax.random.key(seed))
        assert budget - sum(len(c) for c in chosen) in range(budget // 10)
        for level, (grid, numbers) in enumerate(zip(grids, chosen, strict=True)):
            numbers = np.asarray(numbers)
            assert len(np.unique(numbers)) == len(numbers) and numbers.max() < np.prod(grid)
            # No level is starved; the first one is read whole in every step where it can be.
            least = np.prod(grid) if whole and level == 0 else budget / (15 if whole else 8)
            assert len(numbers) >= int(least), level
            # In every step all of the picture; over the steps every frame.
            _, y, x = np.unravel_index(numbers, grid)
            quarters = np.unique(2 * y // grid[1] * 2 + 2 * x // grid[2])
            assert len(quarters) == 4 or len(numbers) < 16, level
            seen[level] |= set(numbers.tolist())
    for numbers, grid in zip(seen, grids, strict=True):
        assert {n // (grid[1] * grid[2]) for n in numbers} == set(range(grid[0]))
    # With every step more of each level that is not read whole.
    part = [level for level in range(len(grids)) if len(chosen[level]) < np.prod(grids[level])]
    assert all(len(seen[level]) > 1.5 * len(chosen[level]) for level in part)


def test_budgets_that_cannot_be_spread_are_refused():
    grids = tuple(grid_shape(stride, 17, 256, 256) for stride in PRESETS["pyramid"])
    assert spread_tokens(grids, None, None) is None
    with pytest.raises(ValueError, match="too small for 4 levels"):
        spread_tokens(grids, 7, None)


def test_a_spread_budget_keeps_places_and_reads_only_its_tokens():
    model, alignment, logits, ids, mask = _parts(mrope_section=(1, 1, 2))
    codes = _codes(logits)
    grids = tuple(q.shape[1:4] for q in codes)
    chosen = spread_tokens(grids, 15, jax.random.key(0))
    whole, part = alignment.sequence(codes), alignment.sequence(codes, chosen)
    starts = [1, 1 + 5 + 1, 1 + 5 + 1 + 12 + 1]
    kept = [0]
    for level, start in enumerate(starts):
        kept += ([start - 1] if level else []) + (start + np.asarray(chosen[level])).tolist()
    np.testing.assert_array_equal(part.inputs, whole.inputs[:, np.array(kept[:-1])])
    np.testing.assert_array_equal(part.positions, np.asarray(whole.positions)[:, kept[:-1]])
    np.testing.assert_array_equal(part.targets, whole.targets[:, np.array(kept[1:]) - 1])
    loss, metrics = autoregressive_loss(alignment, model, codes, (ids, mask), 15)
    assert metrics["tokens"] == sum(len(c) for c in chosen) and np.isfinite(loss)
    with pytest.raises(ValueError, match="spread or crop"):
        autoregressive_loss(alignment, model, codes, (ids, mask), 15, region="frame")


def test_starts_at_chance_whatever_the_states():
    """Outlier features in the hundreds, as real language models have, do not move the start."""
    alignment = Alignment(16, 4, 64, rngs=nnx.Rngs(0))
    hidden = 300.0 * jax.random.normal(jax.random.key(0), (2, 9, 64))
    targets = jnp.where(jax.random.bernoulli(jax.random.key(1), shape=(2, 9, 16)), 1.0, -1.0)
    nats = alignment.cross_entropy(hidden, targets, np.zeros(9, bool))
    np.testing.assert_allclose(nats, 16 * np.log(2), rtol=0.01)


def test_starts_at_chance_through_a_real_language_model():
    """Its states are of a size at which a fresh linear head would be certain and wrong."""
    language = load_language("builtin:smollm2")
    captions = ["A red circle moves to the left.", "Two blue stars.", "A pink heart that spins."]
    ids, mask = map(jnp.asarray, CaptionTokenizer(language.tokenizer, 16)(captions))
    _, _, logits, _, _ = _parts()
    width = language.model.config.width
    alignment = Alignment(BITS, len(GRIDS), width, rngs=nnx.Rngs(1))

    @nnx.jit
    def measured(alignment, model, codes, ids, mask):
        states = TextEncoder(model)(ids, mask).embeddings
        return states, autoregressive_loss(alignment, model, codes, (ids, mask), layers=6)[0]

    states, nats = measured(alignment, language.model, _codes(logits), ids, mask)
    assert float(np.std(np.asarray(states)[np.asarray(mask)])) > 1.5
    np.testing.assert_allclose(nats, BITS * np.log(2), rtol=0.01)


def test_nats_under_own_and_shuffled_captions_tell_whether_codes_speak():
    model, alignment, logits, ids, mask = _parts()
    alignment.head.kernel[...] = jax.random.normal(jax.random.key(4), alignment.head.kernel.shape)
    found = caption_nats(alignment, model, _codes(logits), Prompts(ids, mask))
    assert {
        f"{c}/level_{n}" for c in ("own", "none", "shuffled", "gain") for n in (1, 2, 3)
    } == set(found)
    assert abs(float(found["own/level_1"] - found["none/level_1"])) > 1e-4
    gain = found["shuffled/level_2"] - found["own/level_2"]
    np.testing.assert_allclose(found["gain/level_2"], gain, rtol=1e-4)
    repeated = Prompts(ids[:1].repeat(3, 0), mask[:1].repeat(3, 0))
    same = caption_nats(alignment, model, _codes(logits), repeated)
    np.testing.assert_allclose(same["gain/level_1"], 0.0, atol=1e-5)


def _taught(pooled_text):
    """Nats by caption of codes that a caption decides, after 60 steps of the head alone.

    The captions' words are hidden from the language model, so that they speak through the pooled
    vectors or not at all.
    """
    model, _, _, _, _ = _parts()
    width = model.config.width
    alignment = Alignment(BITS, len(GRIDS), width, rngs=nnx.Rngs(1), pooled_text=pooled_text)
    optimizer = nnx.Optimizer(alignment, optax.adam(2e-2), wrt=nnx.Param)
    table = jnp.where(jax.random.bernoulli(jax.random.key(9), shape=(4, BITS)), 1.0, -1.0)
    meanings = jax.random.normal(jax.random.key(3), (4, width))

    def batch(words):
        code = table[words][:, None, None, None]
        codes = tuple(jnp.broadcast_to(code, (len(words), *grid, BITS)) for grid in GRIDS)
        return codes, Prompts(words[:, None], jnp.zeros((len(words), 1), bool), meanings[words])

    @nnx.jit
    def step(alignment, optimizer, model, key):
        codes, own = batch(jax.random.randint(key, (16,), 0, 4))

        def loss(alignment):
            text = own.ids, own.mask
            return autoregressive_loss(alignment, model, codes, text, pooled=own.pooled)[0]

        optimizer.update(alignment, nnx.grad(loss)(alignment))

    for number in range(60):
        step(alignment, optimizer, model, jax.random.key(number))
    codes, own = batch(jnp.arange(4))
    return caption_nats(alignment, model, codes, own)


def test_the_pooled_caption_tells_the_codes_what_attention_does_not():
    told, untold = _taught(True), _taught(False)
    assert float(told["gain/level_1"]) > 0.5
    assert float(told["none/level_1"]) > float(told["own/level_1"]) + 0.2
    assert abs(float(untold["gain/level_1"])) < 1e-5


def test_a_frozen_model_has_no_optimizer_state():
    """The step that the loss is made for: the model is an argument that nothing updates."""
    model, alignment, logits, ids, mask = _parts()
    optimizer = nnx.Optimizer(alignment, optax.adam(1e-2), wrt=nnx.Param)
    before = jax.tree.map(jnp.copy, nnx.state(model))

    @nnx.jit
    def step(alignment, optimizer, model):
        def loss(alignment):
            return autoregressive_loss(alignment, model, _codes(logits), (ids, mask))[0]

        optimizer.update(alignment, nnx.grad(loss)(alignment))

    step(alignment, optimizer, model)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
    moments = sum(x.size for x in jax.tree.leaves(nnx.state(optimizer)) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(nnx.state(alignment)))


def test_a_hundred_steps_on_structured_tokens():
    """Level 1 follows from the caption's word, later levels from the tokens before them."""
    model, alignment, _, _, _ = _parts()
    optimizer = nnx.Optimizer(alignment, optax.adam(2e-2), wrt=nnx.Param)
    table = jnp.where(jax.random.bernoulli(jax.random.key(9), shape=(4, BITS)), 1.0, -1.0)

    def batch(key):
        word = jax.random.randint(key, (16,), 0, 4)
        code = table[word][:, None, None, None]
        signs = jax.random.choice(
            jax.random.fold_in(key, 1), jnp.array([-1.0, 1.0]), (16, 1, 1, 1, 1)
        )
        levels = [jnp.broadcast_to(code, (16, *GRIDS[0], BITS))]
        levels += [jnp.broadcast_to(code * signs, (16, *grid, BITS)) for grid in GRIDS[1:]]
        return tuple(levels), word[:, None] + 10, jnp.ones((16, 1), bool)

    @nnx.jit
    def step(alignment, optimizer, model, key):
        codes, ids, mask = batch(key)

        def loss(alignment):
            return autoregressive_loss(alignment, model, codes, (ids, mask))

        (value, metrics), grads = nnx.value_and_grad(loss, has_aux=True)(alignment)
        optimizer.update(alignment, grads)
        return value, metrics

    values = [step(alignment, optimizer, model, jax.random.key(i)) for i in range(100)]
    chance = float(values[0][1]["chance"])
    assert float(values[0][0]) > 0.9 * chance
    assert float(values[-1][0]) < 0.35 * chance
    assert float(values[-1][1]["bit_accuracy"]) > 0.9
