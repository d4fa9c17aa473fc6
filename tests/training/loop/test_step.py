"""The step on a problem small enough to know the answer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.errors import UserError
from pyratok_jax.training.config import training_config
from pyratok_jax.training.loop.contracts import Batch
from pyratok_jax.training.loop.loop import train
from pyratok_jax.training.optimizer import learning_rate, make_optimizer, orthogonalised
from pyratok_jax.training.step import initial_state, make_train_step

RATE = 0.1


def loss(params, frozen, batch, key, progress):
    value = jnp.mean((params["w"] * batch["x"] - frozen["target"]) ** 2)
    return value, {"progress": progress, "noise": jax.random.normal(key)}


def run(batches, seed=3, **settings):
    optimizer = optax.sgd(RATE)
    step = jax.jit(make_train_step(loss, optimizer, steps=len(batches), **settings))
    decay = settings.get("ema_decay", 0.0)
    state = initial_state({"w": jnp.array([1.0, 2.0])}, optimizer, decay)
    metrics = []
    for x in batches:
        batch = {"x": jnp.asarray(x)}
        state, values = step(state, {"target": jnp.zeros(2)}, batch, np.uint32(seed))
        metrics.append(jax.device_get(values))
    return state, metrics


def test_averages_hold_running_statistics_as_they_are():
    """An average over steps would keep a share of their start, which means nothing."""
    name = "tokenizer.text_statistics.mean"

    def follow(params, frozen, batch, key, progress):
        value = jnp.sum(jax.lax.stop_gradient(params[name] - 7.0) * params[name])
        return value + jnp.sum(params["w"] ** 2), {}

    optimizer = make_optimizer(optimizer_config(learning_rate=0.1), 3)
    step = jax.jit(make_train_step(follow, optimizer, steps=3, ema_decay=0.9))
    state = initial_state({name: jnp.zeros(2), "w": jnp.ones(2)}, optimizer, 0.9)
    state, _ = step(state, {}, {"x": jnp.ones((2, 1))}, np.uint32(0))
    np.testing.assert_allclose(state.ema[name], 7.0)
    assert np.all(state.ema["w"] > state.params["w"])


def test_a_step_is_gradient_descent():
    state, metrics = run([np.ones((4, 2), np.float32)])
    np.testing.assert_allclose(state.params["w"], [1 - RATE * 1, 2 - RATE * 2], rtol=1e-6)
    assert metrics[0]["loss"] == pytest.approx(2.5)
    assert metrics[0]["grad_norm"] == pytest.approx(5**0.5)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    good, bad = np.ones((2, 2), np.float32), np.full((2, 2), np.nan, np.float32)
    state, metrics = run([good, bad, bad, good], ema_decay=0.5)
    expected, _ = run([good, good], ema_decay=0.5)
    np.testing.assert_array_equal(state.params["w"], expected.params["w"])
    np.testing.assert_array_equal(state.ema["w"], expected.ema["w"])
    assert [int(m["skipped_steps"]) for m in metrics] == [0, 1, 2, 2]
    assert int(state.step) == 4 and int(state.skipped_in_a_row) == 0


def test_accumulated_parts_average_to_the_whole_batch():
    x = np.arange(12, dtype=np.float32).reshape(6, 2) / 10
    whole, _ = run([x])
    parts, metrics = run([x], accumulate=3)
    np.testing.assert_allclose(whole.params["w"], parts.params["w"], rtol=1e-6)
    assert metrics[0]["loss"] == pytest.approx(np.mean((x * [1, 2]) ** 2), rel=1e-6)


def test_averages_follow_the_parameters():
    state, _ = run([np.ones((1, 2), np.float32)] * 2, ema_decay=0.75)
    w = [1.0, 1.0 * (1 - RATE), 1.0 * (1 - RATE) ** 2]
    expected = 0.75 * (0.75 * w[0] + 0.25 * w[1]) + 0.25 * w[2]
    assert float(state.ema["w"][0]) == pytest.approx(expected, rel=1e-6)


def test_randomness_is_a_function_of_seed_and_step():
    x = np.ones((1, 2), np.float32)
    first, second = (run([x] * 3)[1] for _ in range(2))
    assert [m["noise"] for m in first] == [m["noise"] for m in second]
    assert len({float(m["noise"]) for m in first}) == 3
    other = run([x] * 3, seed=4)[1]
    assert not {float(m["noise"]) for m in first} & {float(m["noise"]) for m in other}
    assert [float(m["progress"]) for m in first] == pytest.approx([0, 1 / 3, 2 / 3])


def optimizer_config(**changes):
    return training_config().optimizer.copy_and_resolve_references().to_dict() | changes


def test_schedules_warm_up_and_come_down():
    cosine = learning_rate(optimizer_config(learning_rate=1.0, warmup=10), 110)
    assert [float(cosine(s)) for s in (0, 5, 10, 60, 110)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    flat = learning_rate(
        optimizer_config(learning_rate=1.0, schedule="trapezoid", decay_share=0.5), 100
    )
    assert [float(flat(s)) for s in (0, 49, 75, 100)] == pytest.approx([1, 1, 0.5, 0])
    with pytest.raises(UserError, match="optimizer.warmup 20"):
        learning_rate(optimizer_config(warmup=20), 10)
    with pytest.raises(UserError, match="optimizer.schedule"):
        learning_rate(optimizer_config(schedule="linear"), 10)


def test_muon_orthogonalises_kernels_and_leaves_vectors_to_adam():
    params = {"kernel": jnp.zeros((3, 3, 4, 8)), "bias": jnp.zeros(8)}
    config = optimizer_config(name="muon", learning_rate=1.0, schedule="constant", clip_norm=0.0)
    optimizer = make_optimizer(config, 10)
    grads = {
        "kernel": jax.random.normal(jax.random.key(0), (3, 3, 4, 8)),
        "bias": jnp.linspace(-1, 1, 8),
    }
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    singular = np.linalg.svd(np.asarray(updates["kernel"]).reshape(36, 8), compute_uv=False)
    assert singular.max() / singular.min() < 2  # The gradient's own ratio is above 2.5.
    bias = np.asarray(updates["bias"])  # Adam's first step has one size and the gradient's sign.
    np.testing.assert_allclose(bias, -np.sign(grads["bias"]) * abs(bias[0]), rtol=1e-4)
    with pytest.raises(UserError, match="optimizer.name"):
        make_optimizer(optimizer_config(name="sgd"), 10)


class Line(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones(2))
        self.fixed = nnx.Param(jnp.full(2, 5.0))


def test_a_module_comes_apart_and_together_again():
    part = Partition(Line(), lambda name, variable: name == "w")
    assert set(part.trainable) == {"w"} and set(part.frozen) == {"fixed"}
    module = part.merge({"w": jnp.zeros(2)}, part.frozen)
    np.testing.assert_array_equal(module.w[...], 0.0)
    np.testing.assert_array_equal(module.fixed[...], 5.0)
    with pytest.raises(KeyError):
        part.merge(part.frozen)


class PoisonedTask:
    """Losses are not finite from the third batch on."""

    def __init__(self):
        self.system, self.step, self.broken = Line(), 0, {}

    def is_trainable(self, name, variable):
        return name == "w"

    def make_loader(self, share_of):
        return self

    def __next__(self):
        self.step += 1
        value = np.nan if self.step > 2 else 1.0
        return Batch({"x": np.full((2, 2), value, np.float32)}, 2)

    def get_state(self):
        return {"step": self.step}

    def close(self):
        pass

    def loss(self, system, batch, key, progress):
        value = jnp.mean((system.w[...] * batch["x"]) ** 2)
        return value, {"square": value}


def test_a_loss_that_stays_bad_ends_the_training_with_a_diagnosis(tmp_path):
    config: ConfigDict = training_config(steps=9, batch_size=2, max_bad_steps=3, log_every=1)
    with pytest.raises(UserError, match="not finite for 3 steps up to step 5.*square nan"):
        train(config, tmp_path / "w", PoisonedTask())


def test_gram_muon_is_muon_and_leaves_vectors_to_adam():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 40, 12)) * np.exp(-np.linspace(0, 5, 12))
    ours = np.asarray(orthogonalised(jnp.asarray(x, jnp.float32)))
    for given, made in zip(x, ours, strict=True):
        z = given / np.linalg.norm(given)
        for _ in range(5):  # Newton and Schulz on the tall matrix itself
            gram = z.T @ z
            z = 3.4445 * z + z @ (-4.7750 * gram + 2.0315 * gram @ gram)
        np.testing.assert_allclose(made, z, atol=1e-3)
    config = optimizer_config(
        name="gram_muon", learning_rate=1.0, schedule="constant", clip_norm=0.0
    )
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.ones((3, 4, 6)), "wide": jnp.ones((2, 8)), "bias": jnp.ones(5)}
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for name in ("kernel", "wide"):
        assert updates[name].shape == params[name].shape
        rms = float(jnp.sqrt(jnp.mean(jnp.square(updates[name]))))
        assert 0.1 < rms < 0.3, name
    np.testing.assert_allclose(jnp.abs(updates["bias"]), config["adam_share"], rtol=1e-3)
