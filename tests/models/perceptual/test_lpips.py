"""LPIPS against the reference implementation on random weights, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from pyratok_jax.models.perceptual.lpips import LPIPS, TRUNKS
from pyratok_jax.models.settings import LPIPS_TRUNKS
from tests.models.perceptual.lpips_reference import distance

# Compiled as a whole: one by one, operations take long to compile.
distances = nnx.jit(lambda model, a, b: model(a, b))
differentiate = nnx.jit(nnx.value_and_grad(lambda model, x, y: model(x, y).sum(), argnums=1))


def reference(model: LPIPS, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances by the torch network of `lpips_reference` with the weights of ours."""
    kernels = [torch.tensor(np.array(c.kernel[...])).permute(3, 2, 0, 1) for c in model.convs]
    biases = [torch.tensor(np.array(c.bias[...])) for c in model.convs]
    weights = [torch.tensor(np.array(weight[...])) for weight in model.weights]
    x, y = (torch.tensor(images).permute(0, 3, 1, 2) for images in (a, b))
    with torch.no_grad():
        return distance(model.net, x, y, kernels, biases, weights).numpy()


def pair(h, w):
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (2, h, w, 3)).astype(np.float32)
    return a, np.clip(a + 0.3 * rng.normal(size=a.shape), -1, 1).astype(np.float32)


@pytest.mark.parametrize("net, sides", [("vgg", (33, 38)), ("alex", (64, 47))])
def test_distances_equal_the_reference(net, sides):
    model = LPIPS(net, rngs=nnx.Rngs(0))
    # Random biases, so that a wrong one shows.
    for i, conv in enumerate(model.convs):
        conv.bias[...] = 0.1 * jax.random.normal(jax.random.key(i), conv.bias.shape)
    a, b = pair(*sides)
    expected = reference(model, a, b)
    np.testing.assert_allclose(distances(model, a, b), expected, rtol=1e-4)


def test_vgg_compares_the_published_layers():
    specs = TRUNKS["vgg"]
    assert len(specs) == 13 and [s.channels for s in specs if s.tap] == [64, 128, 256, 512, 512]
    model = LPIPS("alex", rngs=nnx.Rngs(0))
    features = jax.eval_shape(model.features, jnp.zeros((1, 64, 64, 3)))
    shapes = [f.shape[1:] for f in features]
    assert shapes == [(15, 15, 64), (7, 7, 192), (3, 3, 384), (3, 3, 256), (3, 3, 256)]


def test_equal_images_have_distance_0_and_finite_gradients_everywhere():
    """Also where every feature is 0, which a norm's square root turns into NaN."""
    model = LPIPS("alex", rngs=nnx.Rngs(0))
    dead = LPIPS("alex", rngs=nnx.Rngs(0))
    for conv in dead.convs:
        conv.bias[...] = jnp.full_like(conv.bias[...], -1e6)
    a = jnp.asarray(pair(40, 40)[0])
    for network in (model, dead):
        value, gradient = differentiate(network, a, a)
        assert float(value) == 0.0 and np.isfinite(gradient).all()
    gradient = differentiate(model, a + 0.1, a)[1]
    assert np.isfinite(gradient).all() and np.any(np.asarray(gradient) != 0)


def test_small_images_and_unknown_trunks_are_refused():
    with pytest.raises(ValueError, match="at least 31"):
        LPIPS("alex", rngs=nnx.Rngs(0))(jnp.zeros((1, 30, 64, 3)), jnp.zeros((1, 30, 64, 3)))
    with pytest.raises(ValueError, match="vgg, alex"):
        LPIPS("squeeze", rngs=nnx.Rngs(0))


def test_the_commands_offer_the_trunks_that_there_are():
    assert tuple(TRUNKS) == LPIPS_TRUNKS
