"""Convolutions by Winograd's filtering and by phases: their values, and what they save."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.nn.causal_conv import CausalConv3d, Conv2d, TimeConv, causal_conv
from pyratok_jax.nn.fast_convs import winograd_over_time
from pyratok_jax.nn.lowering import conv_lowering

pytestmark = pytest.mark.fast


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def multiply(frames: jax.Array, taps: jax.Array) -> jax.Array:
    return frames @ taps[0, 0]


@pytest.mark.parametrize("frames", [*range(3, 13), 19])
def test_it_is_the_sum_over_taps(frames):
    x, kernel = noise(2, frames, 3, 2, 8), noise(3, 1, 1, 8, 5, seed=1)
    wide = x.astype(np.float64)
    expected = sum(
        wide[:, k : k + frames - 2] @ kernel[k, 0, 0].astype(np.float64) for k in range(3)
    )
    found = winograd_over_time(x, kernel, multiply)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 3e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("outputs", "convolved"), [(1, 3), (2, 4), (3, 7), (4, 6), (5, 9), (6, 10), (8, 12), (16, 24)]
)
def test_how_many_frames_are_convolved(outputs, convolved):
    """In place of three for each output."""
    seen = []

    def count(frames, taps):
        seen.append(frames.shape[1])
        return multiply(frames, taps)

    winograd_over_time(noise(1, outputs + 2, 1, 1, 4), noise(3, 1, 1, 4, 4), count)
    assert sum(seen) == convolved


@pytest.mark.parametrize("has_past", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 6, 9, 17])
def test_values_and_gradients_are_those_of_one_convolution(frames, has_past):
    x = noise(2, frames + (2 if has_past else 0), 5, 6, 4)
    kernel, weights = noise(3, 3, 3, 4, 3, seed=1), noise(2, frames, 5, 6, 3, seed=2)

    def total(x, kernel):
        y = causal_conv(x, kernel, has_past=has_past)
        return jnp.sum(y * weights), y

    def run(form: str):
        with conv_lowering(form):
            return jax.grad(total, (0, 1), has_aux=True)(x, kernel)

    for found, expected in zip(
        jax.tree.leaves(run("frames")), jax.tree.leaves(run("conv3d")), strict=True
    ):
        assert np.linalg.norm(found - expected) < 3e-6 * np.linalg.norm(expected)


def test_later_frames_change_earlier_ones_by_rounding_alone():
    x, kernel = noise(1, 9, 4, 4, 8), noise(3, 3, 3, 8, 8, seed=1)
    later = x.copy()
    later[:, 4:] = 10 * noise(1, 5, 4, 4, 8, seed=3)
    with conv_lowering("frames"):
        found, expected = causal_conv(later, kernel), causal_conv(x, kernel)
    moved = np.abs(found - expected).max(axis=(0, 2, 3, 4)) / np.abs(expected).max()
    assert moved[:4].max() < 3e-5 and moved[4:].min() > 0.1


def test_half_precision_is_summed_over_taps():
    """Sums of 4, 5 and 8 frames would cost bfloat16 its last bits."""
    x = jnp.asarray(noise(1, 6, 3, 3, 4), jnp.bfloat16)
    kernel = jnp.asarray(noise(3, 1, 1, 4, 4, seed=1), jnp.bfloat16)
    with conv_lowering("frames"):
        found = causal_conv(x, kernel, has_past=True)
    plain = sum(x[:, k : k + 4] @ kernel[k, 0, 0] for k in range(3))
    np.testing.assert_allclose(
        found.astype(np.float32), plain.astype(np.float32), rtol=0.02, atol=0.02
    )


def test_layers_take_fewer_multiplications():
    """By the compiler's own count, against those of the plain forms."""
    x = noise(1, 18, 8, 8, 16)
    upsampling = Conv2d(16, 16, (3, 3), rngs=nnx.Rngs(0)).after_upsampling
    for run, taps, most in (
        (CausalConv3d(16, 16, (3, 3, 3), rngs=nnx.Rngs(0)), 27, 0.7),
        (TimeConv(16, 16, (3, 1, 1), rngs=nnx.Rngs(0)), 3, 0.7),
        (upsampling, 4 * 9, 0.5),
    ):
        with conv_lowering("frames"):
            lowered = jax.jit(lambda x, run=run: run(x)).lower(x)
        plain = 2 * 16 * 16 * taps * 18 * 64
        assert lowered.cost_analysis()["flops"] < most * plain
