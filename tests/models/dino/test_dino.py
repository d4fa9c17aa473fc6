"""DINO networks against transformers on random weights, positions against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pyratok_jax.checkpoints.conversion import load_arrays
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.partition import build_module
from pyratok_jax.models.dino import Dino, DinoConfig, bicubic_matrix, fit_sides
from tests.models.dino import reference
from weights_conversion.networks.dino import make_plan


def convert(kind: str):
    from flax import nnx

    model = reference.make(kind)
    config, plan = make_plan(sources_from_arrays(reference.arrays(model)), heads=2)
    arrays = load_arrays(plan)
    return model, build_module(lambda: Dino(config, rngs=nnx.Rngs(0)), arrays)


def images(h, w, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (2, h, w, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "kind, shapes",
    [
        ("v3", ((32, 48), (64, 16))),
        ("v3-gated", ((32, 32),)),
        ("v2", ((42, 42), (28, 84))),
        ("v2-registers", ((42, 42), (28, 84))),
    ],
)
def test_features_equal_transformers(kind, shapes):
    """Registers, rotary positions, and learned positions at their own and at other sizes."""
    theirs, ours = convert(kind)
    registers, patch = ours.config.registers, ours.config.patch
    for h, w in shapes:
        x = images(h, w)
        expected = reference.hidden_states(theirs, x)
        found = ours(jnp.asarray(x))
        np.testing.assert_allclose(found.summary, expected[:, 0], atol=2e-4)
        np.testing.assert_allclose(found.registers, expected[:, 1 : 1 + registers], atol=2e-4)
        patches = expected[:, 1 + registers :].reshape(2, h // patch, w // patch, -1)
        np.testing.assert_allclose(found.patches, patches, atol=2e-4)


def test_the_sizes_are_read_from_the_tensors():
    _, v3 = convert("v3")
    assert v3.config == DinoConfig(32, 2, 2, 48, 16, 4)
    _, v2 = convert("v2-registers")
    assert v2.config == DinoConfig(
        32, 2, 2, 64, 14, 3, key_bias=True, epsilon=1e-6, rope_theta=None, positions=3,
        antialias=True,
    )  # fmt: skip


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("source, target", [(5, 12), (9, 4), (7, 7)])
def test_bicubic_weights_equal_torch(source, target, antialias):
    x = np.random.default_rng(0).normal(size=(source, source)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(x)[None, None],
        size=(target, target),
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )[0, 0]
    matrix = bicubic_matrix(source, target, antialias)
    np.testing.assert_allclose(matrix @ x @ matrix.T, expected, atol=1e-5)


def test_gradients_pass_through_to_the_images():
    _, model = convert("v3")
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(model(x).patches ** 2)))(images(32, 32))
    assert np.isfinite(gradient).all() and np.all(np.any(np.asarray(gradient) != 0, axis=(1, 2)))


def test_sides_that_do_not_divide_are_refused_and_can_be_fitted():
    _, model = convert("v3")
    with pytest.raises(ValueError, match="multiples of the patch, 16"):
        model(jnp.zeros((1, 30, 32, 3)))
    assert fit_sides(jnp.zeros((1, 30, 41, 3)), 16).shape == (1, 32, 48, 3)
    assert fit_sides(jnp.zeros((1, 4, 16, 3)), 16).shape == (1, 16, 16, 3)
    assert fit_sides(jnp.zeros((1, 64, 128, 3)), 16, 64).shape == (1, 32, 64, 3)
    assert fit_sides(jnp.zeros((1, 32, 48, 3)), 16, 64).shape == (1, 32, 48, 3)
    assert fit_sides(jnp.ones((1, 64, 128, 3)), 16, 64).mean() == pytest.approx(1.0)
