"""Derivatives written out for TPUs equal automatic ones of the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.models.wan_vae.layers import ChannelNorm, ResidualBlock
from pyratok_jax.nn.causal_conv import causal_conv
from pyratok_jax.nn.halo import cut, in_strips, join
from pyratok_jax.nn.lowering import conv_lowering
from tests.models.wan_vae.reference import noise, relative


def gradients(form, strips, function, *inputs):
    """Value and gradients; the gradient is taken where form and strips are no longer in force."""

    def total(*inputs):
        with conv_lowering(form), in_strips(strips):
            y = function(*inputs)
        return jnp.sum(y * noise(*y.shape, seed=9)), y

    found, y = jax.jit(jax.grad(total, argnums=tuple(range(len(inputs))), has_aux=True))(*inputs)
    return [y, *found]


@pytest.mark.parametrize("strips", [1, 4])
@pytest.mark.parametrize(
    ("frames", "window", "outputs"),
    [(4, (3, 3, 3), 20), (1, (3, 3, 3), 20), (3, (3, 3, 3), 3), (3, (2, 1, 5), 20)],
)
def test_convolution(strips, frames, window, outputs):
    x, kernel = noise(2, frames, 8, 8, 5), 0.2 * noise(*window, 5, outputs, seed=1)

    def function(x, kernel):
        return join(causal_conv(cut(x), kernel))

    expected = gradients("conv3d", 1, function, x, kernel)
    for found, wanted in zip(gradients("tpu", strips, function, x, kernel), expected, strict=True):
        assert found.shape == wanted.shape and relative(found, wanted) < 1e-5


@pytest.mark.parametrize("activate", [False, True])
def test_norm(activate):
    """Of filled channels, and of zero vectors too."""
    norm = ChannelNorm(6)
    norm.gamma[...] = noise(6, seed=2)
    graph, state = nnx.split(norm)
    x = noise(2, 2, 3, 4, 6)
    x = jnp.pad(x.at[0, 0, 0, 0].set(0.0), ((0, 0),) * 4 + ((0, 2),))

    def function(x, state):
        return nnx.merge(graph, state)(x, activate=activate)

    expected = jax.tree.leaves(gradients("conv3d", 1, function, x, state))
    found = jax.tree.leaves(gradients("tpu", 1, function, x, state))
    assert np.all(np.isfinite(found[1]))
    for ours, wanted in zip(found, expected, strict=True):
        assert relative(ours, wanted) < 1e-5
    # A zero vector's gradient is 1e12 times that of others, which would hide them.
    assert relative(found[1][1], expected[1][1]) < 1e-5


def test_residual_block_with_adapted_kernels():
    block = ResidualBlock(4, 6, rngs=nnx.Rngs(0))
    graph, state = nnx.split(block)

    def function(x, state):
        return join(nnx.merge(graph, state)(cut(x)))

    x = noise(1, 3, 8, 6, 4)
    expected = gradients("conv3d", 1, function, x, state)
    found = gradients("tpu", 2, function, x, state)
    for ours, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative(ours, wanted) < 1e-5
