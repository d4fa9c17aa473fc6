"""Reconstruction terms against hand-computed values and the published SSIM code."""

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pyratok_jax.losses import pixel as R


def images(n=3, h=20, w=27, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.uniform(size=(n, h, w, 3)).astype(np.float32)
    b = (a + noise * rng.normal(size=a.shape)).astype(np.float32)
    return jnp.asarray(a), jnp.asarray(b)


def test_l1_of_known_values():
    assert float(R.l1(jnp.array([1.0, -1.0]), jnp.array([0.5, 1.0]))) == 1.25


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_ssim_equals_dm_pix(noise):
    a, b = images(noise=noise)
    np.testing.assert_allclose(R.ssim(a, b), dm_pix.ssim(a, b), atol=3e-6)


def test_ssim_equals_the_window_written_out():
    """One position, one channel: weighted moments in float64."""
    a, b = (np.asarray(x, np.float64)[:, :11, :11, :1] for x in images())
    g = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    w = np.outer(g, g)[None, :, :, None] / g.sum() ** 2
    mean_a, mean_b = (w * a).sum((1, 2, 3)), (w * b).sum((1, 2, 3))
    var_a, var_b = (w * a * a).sum((1, 2, 3)) - mean_a**2, (w * b * b).sum((1, 2, 3)) - mean_b**2
    cov = (w * a * b).sum((1, 2, 3)) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
    expected = top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
    found = R.ssim(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_ssim_gradient_is_finite_on_flat_and_equal_images():
    flat = jnp.full((1, 16, 16, 3), 0.5)
    for other in (flat, flat.at[0, 3, 3].set(1.0)):
        gradient = jax.grad(lambda b: R.ssim(flat, b).sum())(other)
        assert np.isfinite(gradient).all()


def test_the_ssim_loss_maps_the_range_and_is_0_for_equal_videos():
    a, b = (x.reshape(1, 3, 20, 27, 3) for x in images())
    loss = R.ssim_loss(2 * a - 1, 2 * b - 1)
    np.testing.assert_allclose(loss, 1 - dm_pix.ssim(a[0], b[0]).mean(), atol=1e-5)
    assert abs(float(R.ssim_loss(a, a))) < 1e-6


def test_images_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="at least 11"):
        R.ssim(jnp.zeros((1, 10, 20, 3)), jnp.zeros((1, 10, 20, 3)))


def test_frames_are_drawn_from_equal_stretches():
    assert R.choose_frames(5, 0, None).tolist() == R.choose_frames(5, 9, None).tolist()
    assert R.choose_frames(17, 2, None).tolist() == [4, 12]
    seen = set()
    for seed in range(60):
        first, second = R.choose_frames(9, 2, jax.random.key(seed)).tolist()
        assert 0 <= first <= 4 <= second <= 8
        seen |= {first, second}
    assert seen == set(range(9))


def test_the_perceptual_term_sees_the_same_frames_of_both_videos():
    video = jnp.broadcast_to(jnp.arange(6.0)[None, :, None, None, None], (2, 6, 4, 4, 3))
    frames = []

    def distance(a, b):
        frames.append(a[:, 0, 0, 0].tolist())
        return (b - a)[:, 0, 0, 0]

    value = R.lpips_loss(video, video + 2.0, distance, frames=3)
    assert frames == [[1, 3, 5, 1, 3, 5]] and float(value) == 2.0
