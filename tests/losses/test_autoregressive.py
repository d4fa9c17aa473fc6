"""The autoregressive loss: what it counts, where gradients go, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pyratok_jax.losses import autoregressive
from pyratok_jax.losses.autoregressive import autoregressive_loss
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.config import tiny
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.models.language.text import TextEncoder
from pyratok_jax.models.pyratok.lfq import quantize

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
            positions = np.concatenate([words, length + sequence.positions], axis=1)[:, None]
            positions = jnp.asarray(positions)
        hidden = model(inputs, None, positions).hidden[:, length:]
        return alignment.cross_entropy(hidden, sequence.targets, sequence.separator)

    lengths = [int(count) for count in mask.sum(axis=1)]
    rows = [one_pass(alignment, model, row, length) for row, length in enumerate(lengths)]
    np.testing.assert_allclose(loss, np.mean(np.concatenate(rows)), rtol=1e-5)
    assert rows[0].shape == (1, 5 + 12 + 8 + 2)
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
            return autoregressive_loss(alignment, model, _codes(logits), (ids, mask))

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


def test_gradients_reach_alignment_and_codes_alone():
    model, alignment, logits, ids, mask = _parts()

    def loss(alignment, logits):
        return autoregressive_loss(alignment, model, _codes(logits), (ids, mask))[0]

    grads, code_grads = nnx.jit(nnx.grad(loss, argnums=(0, 1)))(alignment, logits)
    for path, leaf in nnx.to_flat_state(grads):
        assert float(jnp.abs(leaf[...]).max()) > 0, path
    # The last token is only a target; every other token is an input.
    flat = [np.abs(g).max(axis=-1).reshape(3, -1) for g in code_grads]
    assert (flat[0] > 0).all() and (flat[1] > 0).all() and (flat[2][:, :-1] > 0).all()
    assert (flat[2][:, -1] == 0).all()


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
