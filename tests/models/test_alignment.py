"""The code embedding, the sequence, and the heads against a full softmax."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from pyratok_jax.losses.text import code_features, peak_cosines, unit
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.nn.partitioning import Split, over_devices


def _codes(grids, bits, batch=2, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(grids))
    return tuple(
        jnp.where(jax.random.bernoulli(key, shape=(batch, *grid, bits)), 1.0, -1.0)
        for key, grid in zip(keys, grids, strict=True)
    )


def test_lookup_free_head_is_a_softmax_over_all_codes_and_the_separator():
    bits = 8
    alignment = Alignment(bits, 1, 12, rngs=nnx.Rngs(0))
    alignment.head.kernel[...] = jax.random.normal(jax.random.key(1), (12, bits + 1))
    hidden = jax.random.normal(jax.random.key(2), (1, 5, 12))
    logits = np.asarray(alignment.head(hidden), np.float64)[0]
    table = np.array(list(itertools.product([-1.0, 1.0], repeat=bits)))
    # Codes share what the separator leaves; each has a logit that is linear in its bits.
    scores = logits[:, :bits] @ table.T / 2
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    joint = np.concatenate([scores, logits[:, bits:]], axis=1)
    joint -= np.log(np.exp(joint).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(np.exp(joint).sum(axis=1), 1.0)
    for number in (0, 3, 100, 255):
        targets = jnp.broadcast_to(jnp.asarray(table[number], jnp.float32), (1, 5, bits))
        got = alignment.cross_entropy(hidden, targets, np.zeros(5, bool))
        np.testing.assert_allclose(got[0], -joint[:, number], rtol=1e-5)
    got = alignment.cross_entropy(hidden, jnp.zeros((1, 5, bits)), np.ones(5, bool))
    np.testing.assert_allclose(got[0], -joint[:, -1], rtol=1e-5)
    best = table[joint[:, :-1].argmax(axis=1)]
    np.testing.assert_array_equal(alignment.predicted_bits(hidden)[0], best)


def test_softmax_head_reads_ids_most_significant_bit_first():
    alignment = Alignment(4, 1, 6, rngs=nnx.Rngs(0), head="softmax")
    alignment.head.kernel[...] = jax.random.normal(jax.random.key(1), (6, 17))
    hidden = jax.random.normal(jax.random.key(2), (1, 3, 6))
    shares = jax.nn.log_softmax(alignment.head(hidden))
    code = jnp.array([1.0, -1.0, -1.0, 1.0])
    targets = jnp.stack([code, -code, jnp.zeros(4)])[None]
    got = alignment.cross_entropy(hidden, targets, np.array([False, False, True]))
    expected = [-shares[0, 0, 9], -shares[0, 1, 6], -shares[0, 2, 16]]
    np.testing.assert_allclose(got[0], expected, rtol=1e-5)
    best = np.asarray(shares)[0, :, :16].argmax(axis=1)
    values = np.array([8, 4, 2, 1]) @ (np.asarray(alignment.predicted_bits(hidden)[0]).T > 0)
    np.testing.assert_array_equal(values, best)


def test_sequence_of_two_levels():
    """SOI | q1 (2 tokens) | SEP | q2 (4 tokens): inputs shifted by one against targets."""
    alignment = Alignment(3, 2, 5, rngs=nnx.Rngs(0))
    first, second = _codes([(2, 1, 1), (1, 2, 2)], 3)
    sequence = alignment.sequence((first, second))
    a, b = first.reshape(2, 2, 3), second.reshape(2, 4, 3)
    ea, eb = alignment.embed(a, 0), alignment.embed(b, 1)
    marks = [jnp.broadcast_to(m[...], (2, 1, 5)) for m in (alignment.soi, alignment.separator)]
    inputs = jnp.concatenate([marks[0], ea, marks[1], eb[:, :3]], axis=1)
    np.testing.assert_allclose(sequence.inputs, inputs, rtol=1e-6)
    targets = jnp.concatenate([a, jnp.zeros((2, 1, 3)), b], axis=1)
    np.testing.assert_array_equal(sequence.targets, targets)
    assert sequence.separator.tolist() == [False, False, True, False, False, False, False]
    assert sequence.level.tolist() == [0, 0, 0, 1, 1, 1, 1]
    # SOI at 0; a 2x1x1 grid from 1; the separator one further on; a 1x2x2 grid from 3.
    expected = [[0, 1, 2, 2, 3, 3, 3], [0, 1, 1, 2, 3, 3, 4], [0, 1, 1, 2, 3, 4, 3]]
    assert sequence.positions.tolist() == expected


def test_the_pooled_caption_is_added_to_every_input_and_starts_at_nothing():
    plain = Alignment(3, 2, 5, rngs=nnx.Rngs(0))
    told = Alignment(3, 2, 5, rngs=nnx.Rngs(0), pooled_text=True)
    codes = _codes(((1, 2, 2), (2, 2, 2)), 3)
    caption = jnp.array([[3.0, 0.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    before = plain.sequence(codes).inputs
    np.testing.assert_array_equal(told.sequence(codes, caption=caption).inputs, before)
    told.caption.kernel[...] = jax.random.normal(jax.random.key(1), (5, 5))
    added = told.sequence(codes, caption=caption).inputs - before
    wanted = 0.6 * told.caption.kernel[0] + 0.8 * told.caption.kernel[2]
    np.testing.assert_allclose(added[0], np.broadcast_to(wanted, added[0].shape), atol=1e-5)
    np.testing.assert_array_equal(added[1], np.zeros_like(added[1]))  # No caption adds nothing.
    larger = told.sequence(codes, caption=300.0 * caption).inputs
    np.testing.assert_allclose(larger - before, added, atol=1e-5)
    with pytest.raises(ValueError, match="give caption"):
        told.sequence(codes)


def test_an_input_is_told_where_the_next_code_lies():
    told = Alignment(3, 2, 5, rngs=nnx.Rngs(0), grid_places=True)
    codes = _codes(((1, 2, 2), (2, 2, 2)), 3)
    before = told.sequence(codes).inputs
    told.place.kernel[...] = jax.random.normal(jax.random.key(1), told.place.kernel.shape)
    added = np.asarray(told.sequence(codes).inputs - before)
    np.testing.assert_allclose(added[0], added[1], atol=1e-6)  # The codes do not matter.
    np.testing.assert_allclose(added[:, 4], 0.0)  # A separator comes next.
    places = np.delete(added[0], 4, axis=0)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert distances[~np.eye(12, dtype=bool)].min() > 1e-2
    chosen = (None, np.array([1, 6]))
    some = np.asarray(told.sequence(codes, chosen).inputs)[0]
    np.testing.assert_allclose(some[5] - np.asarray(told.separator[...]), added[0, 6], atol=1e-5)


def test_the_text_space_reads_the_codes_around_each_one():
    plain = Alignment(3, 2, 5, rngs=nnx.Rngs(0), text_hidden=4)
    wide = Alignment(3, 2, 5, rngs=nnx.Rngs(0), text_hidden=4, text_neighbours=True)
    q = _codes([(4, 5, 3)], 3)[0]
    np.testing.assert_array_equal(wide.text_embed(q, 1), plain.text_embed(q, 1))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 3, 4))
    wide.text_near[1].kernel[...] = kernel
    np.testing.assert_array_equal(wide.text_embed(q, 0), plain.text_embed(q, 0))  # Each its own.
    got = wide.text_embed(q, 1)
    # Each token by hand: 3x3 codes of its time and of the two before, zeros beyond the clip.
    padded = np.pad(np.asarray(q, np.float64), ((0, 0), (2, 0), (1, 1), (1, 1), (0, 0)))
    wanted = np.zeros(got.shape)
    for b, t, h, w in np.ndindex(got.shape[:-1]):
        hidden = np.asarray(q[b, t, h, w]) @ np.asarray(wide.text_in) + wide.text_level[1]
        around = padded[b, t : t + 3, h : h + 3, w : w + 3]
        hidden = hidden + np.einsum("thwi,thwio->o", around, np.asarray(kernel))
        wanted[b, t, h, w] = np.asarray(jax.nn.gelu(hidden)) @ np.asarray(wide.text_out)
    np.testing.assert_allclose(got, wanted, atol=2e-5)
    some = np.array([0, 7, 14, 31, 59])
    np.testing.assert_allclose(
        wide.text_embed(q, 1, some), got.reshape(2, 60, 5)[:, some], atol=2e-5
    )
    assert not Alignment(3, 2, 5, rngs=nnx.Rngs(0), text_neighbours=True).text_near


@pytest.mark.parametrize("neighbours", [True, False])
def test_what_lies_across_tokens_is_named_with_neighbours_alone(neighbours):
    """Videos of the same two codes, side by side or one above the other: nothing else differs."""
    alignment = Alignment(2, 1, 6, rngs=nnx.Rngs(0), text_hidden=16, text_neighbours=neighbours)
    a, b = jnp.array([1.0, -1.0]), jnp.array([-1.0, 1.0])
    ground = jnp.full((2, 1, 4, 4, 2), -1.0)
    q = ground.at[:, 0, 1, 1].set(a).at[0, 0, 1, 2].set(b).at[1, 0, 2, 1].set(b)
    names = unit(jax.random.normal(jax.random.key(2), (2, 6)))
    graph, start = nnx.split(alignment)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        def nats(params):
            embed = nnx.merge(graph, params).text_embed
            scores = peak_cosines(code_features(q, 0, embed), names) / 0.07
            return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(2)).mean()

        value, gradient = jax.value_and_grad(nats)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params, state = start, optimizer.init(start)
    for _ in range(60):
        params, state, value = step(params, state)
    chance = float(np.log(2))
    assert value < 0.1 if neighbours else abs(value - chance) < 1e-3, float(value)


def test_embedding_is_linear_and_shared():
    alignment = Alignment(6, 3, 7, rngs=nnx.Rngs(0))
    q = _codes([(1, 2, 2)], 6)[0]
    difference = alignment.embed(q, 0) - alignment.embed(q, 2)
    np.testing.assert_allclose(
        difference, jnp.broadcast_to(difference[0, 0, 0, 0], difference.shape), atol=1e-6
    )
    half = 0.5 * (alignment.embed(q, 1) + alignment.embed(-q, 1))
    np.testing.assert_allclose(half, jnp.broadcast_to(alignment.level[1], half.shape), atol=1e-6)


def test_fresh_embeddings_have_the_scale_asked_for():
    alignment = Alignment(16, 4, 256, rngs=nnx.Rngs(0), scale=0.3)
    values = alignment.embed(_codes([(3, 4, 4)], 16)[0], 0)
    assert 0.25 < float(jnp.sqrt(jnp.mean(values**2))) < 0.35


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="lookup_free, softmax"):
        Alignment(4, 1, 8, rngs=nnx.Rngs(0), head="table")


def test_features_of_codes_stay_with_their_clips():
    """Not the compiler's choice: it let them lie by width and gathered 2 GB for a softmax."""
    alignment = Alignment(4, 1, 8, rngs=nnx.Rngs(0))
    program = jax.make_jaxpr(lambda q: alignment.embed(q, 0))
    mesh = jax.sharding.AbstractMesh((2, 2), ("fsdp", "spatial"))
    with jax.sharding.use_abstract_mesh(mesh), over_devices(Split(("fsdp", "spatial"))):
        last = program(jnp.ones((4, 3, 4))).eqns[-1]
    assert last.primitive.name == "sharding_constraint"
    assert last.params["sharding"].spec == P(("fsdp", "spatial"))
