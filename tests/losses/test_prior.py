"""The prior's loss: weights of the bound, masks, flips, and that it falls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pyratok_jax.losses.prior import block_masks, clip_masks, flipped, prior_loss
from pyratok_jax.losses.settings import PriorObjective
from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.nn.text_attention import TextCondition
from tests.models.prior.tiny import BITS, LAYOUT, codes, prior, text


def synthesize(levels):
    """Any function of the codes on the latent grid serves."""
    first, _, last = levels
    latent = last[..., :3]
    return latent.at[:, 0].add(first[:, 0].repeat(2, 1).repeat(2, 2)[..., :3])


def test_every_token_counts_once_in_the_bound():
    rows = 10_000
    masked, weight, share = block_masks(rows, jax.random.key(0), LAYOUT)
    counted = np.asarray(jnp.where(masked, weight, 0.0))
    error = counted.std(0) / rows**0.5
    assert (np.abs(counted.mean(0) - 1) < 5 * error).all()
    first = np.asarray(masked[:, LAYOUT.part == 0])
    np.testing.assert_allclose(share[:, 0], first.mean(1), rtol=1e-6)
    masked, unknown, own, weight, _ = clip_masks(rows, jax.random.key(1), LAYOUT, 0.0)
    counted = np.asarray(jnp.where(masked, weight, 0.0))
    error = counted.std(0) / rows**0.5
    assert (np.abs(counted.mean(0) - 1) < 5 * error).all()
    asked = np.asarray(masked)
    level = np.where(asked.any(1), LAYOUT.level[asked.argmax(1)], -1)
    rows_asked = level >= 0
    np.testing.assert_array_equal(
        own[rows_asked], (LAYOUT.level[None] == level[:, None])[rows_asked]
    )
    finer = LAYOUT.level[None] > level[:, None]
    assert np.asarray(unknown)[rows_asked][finer[rows_asked]].all()
    coarser = LAYOUT.level[None] < level[:, None]
    assert not np.asarray(unknown)[rows_asked][coarser[rows_asked]].any()


def test_tasks_leave_given_tokens_out():
    masked, unknown, *_ = clip_masks(2000, jax.random.key(1), LAYOUT, 1.0)
    assert not (masked & ~unknown).any()
    # Of interpolation and prediction, frame 0 is given.
    known = ~np.asarray(unknown)[:, LAYOUT.group == 0].any(1)
    assert known.mean() > 0.4


def test_flips_grow_with_time():
    true = codes(4000)
    changed = np.asarray(flipped(true, jax.random.key(0), 0.3, LAYOUT) != true).mean((0, 2))
    by_group = [changed[LAYOUT.group == group].mean() for group in range(3)]
    np.testing.assert_allclose(by_group, [0.05, 0.1, 0.15], atol=0.01)
    assert flipped(true, jax.random.key(0), 0.0, LAYOUT) is true


@pytest.mark.parametrize(
    "order", ["raster", "blocks", pytest.param("masked", marks=pytest.mark.slow)]
)
def test_a_prior_learns_a_clip_by_heart(order):
    model = prior(order, layers=1)
    steps = 300 if order == "masked" else 100  # One level of three per step.
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adam(1e-2)
    true = jnp.tile(codes(2), (4, 1, 1))
    embeddings, mask = text(2).text
    condition = Condition(8, TextCondition(jnp.tile(embeddings, (4, 1, 1)), jnp.tile(mask, (4, 1))))
    objective = PriorObjective(flip=0.02, tasks=0.1)

    def loss(params, key):
        return prior_loss(
            nnx.merge(graph, params, rest), true, condition, key, layout=LAYOUT,
            objective=objective, synthesize=synthesize,
        )  # fmt: skip

    def step(state, key):
        params, momentum = state
        (_, terms), gradient = jax.value_and_grad(loss, has_aux=True)(params, key)
        updates, momentum = optimizer.update(gradient, momentum)
        return (optax.apply_updates(params, updates), momentum), terms

    keys = jax.random.split(jax.random.key(0), steps)
    run = jax.jit(functools.partial(jax.lax.scan, step))
    _, terms = run((params, optimizer.init(params)), keys)
    assert terms.keys() == {
        "nats", "nats_level_1", "nats_level_2", "nats_level_3", "nats_first_group",
        "nats_later_groups", "bit_accuracy", "random_nats",
    }  # fmt: skip
    np.testing.assert_allclose(terms["random_nats"], BITS * np.log(2), rtol=1e-6)
    assert terms["nats"][:5].mean() > 0.6 * BITS * np.log(2)
    # Without information no prior gets below the random nats on the mean.
    assert terms["nats"][-20:].mean() < 0.4 * BITS * np.log(2)
    assert terms["bit_accuracy"][-20:].mean() > 0.9


def test_bits_without_information_cost_their_entropy():
    model = nnx.clone(prior("raster"))
    kernel = model.head.logits.kernel
    kernel[...] = jnp.zeros_like(kernel[...])
    run = nnx.jit(functools.partial(prior_loss, layout=LAYOUT))
    loss, terms = run(model, codes(2), text(2), jax.random.key(0))
    assert abs(float(loss) - float(terms["random_nats"])) < 1e-5


@pytest.mark.parametrize("order", ["raster", "blocks", "masked"])
def test_levels_weigh_what_the_objective_says(order):
    """With one level's weight alone the loss is that level's: the gradient knows no other."""
    true, key = codes(12), jax.random.key(2)

    def value(*weights):
        return prior_loss(
            prior(order), true, text(12), key, layout=LAYOUT, synthesize=synthesize,
            objective=PriorObjective(level_weights=weights),
        )  # fmt: skip

    (plain, terms), (first, same), (rest, _) = value(1.0), value(1.0, 0.0), value(0.0, 1.0)
    assert terms["nats"] == same["nats"] and plain != first
    low, high = sorted((float(first), float(rest)))
    assert low < plain < high
    np.testing.assert_allclose(value(2.0)[0], plain, rtol=1e-6)
    if order == "raster":
        np.testing.assert_allclose(first, terms["nats_level_1"], rtol=1e-5)


@pytest.mark.parametrize("weights", [(), (0.0,), (-1.0, 2.0), (1.0, float("nan"))])
def test_impossible_level_weights_are_refused(weights):
    with pytest.raises(ValueError, match="level_weights"):
        PriorObjective(level_weights=weights)


def test_text_statistics_follow_the_captions():
    """The first step's gradient takes the statistics to the batch's own: 1 / batches is 1."""
    model, condition = nnx.clone(prior("masked")), text(4)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        return prior_loss(
            nnx.merge(graph, params, rest), codes(4), condition, jax.random.key(0), layout=LAYOUT
        )[0]

    found = nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    gradient = {path[-1]: value[...] for path, value in found if "text_statistics" in path}
    words = np.asarray(condition.text.embeddings)[np.asarray(condition.text.mask)]
    np.testing.assert_allclose(-gradient["word_mean"], words.mean(0), atol=1e-6)
    np.testing.assert_allclose(1 - gradient["word_variance"], words.var(0), atol=1e-6)
    assert gradient["batches"] == -1


def test_outlier_features_do_not_hide_the_words():
    """Language models' states share a few huge features; a caption is told by the others."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(64, 3, 6)).astype(np.float32)
    states[..., 0] += 300.0

    def spread(standardised: bool) -> float:
        model = nnx.clone(prior("masked", standardised_text=standardised))
        if standardised:
            statistics = model.conditioner.text_statistics
            statistics.word_mean[...] = jnp.asarray(states.mean((0, 1)))
            statistics.word_variance[...] = jnp.asarray(states.var((0, 1)))
        mask = jnp.ones((64, 3), bool)
        prefix = model.conditioner(Condition(64, TextCondition(jnp.asarray(states), mask))).x
        return float(prefix.std(axis=0).mean() / jnp.abs(prefix).mean())

    assert spread(True) > 10 * spread(False)
