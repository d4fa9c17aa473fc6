"""Metrics against loops in float64 written from the definitions, and values known by hand."""

import dm_pix
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.metrics import image as metrics
from pyratok_jax.models.perceptual.lpips import LPIPS


def videos(t=3, h=24, w=20, noise=30, seed=0):
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.integers(-6, 7, (t, h, w, 3)), axis=2) + 128
    noisy = smooth + rng.integers(-noise, noise + 1, smooth.shape)
    return tuple(np.clip(x, 0, 255).astype(np.uint8) for x in (smooth, noisy))


def ssim_by_definition(a, b, weights, unbiased):
    """Every window spelt out: weighted moments about the window's own means."""
    size = len(weights)
    factor = size**2 / (size**2 - 1) if unbiased else 1.0
    a, b, values = a / 255.0, b / 255.0, []
    for y in range(a.shape[0] - size + 1):
        for x in range(a.shape[1] - size + 1):
            for c in range(3):
                p, q = (z[y : y + size, x : x + size, c] for z in (a, b))
                mu_p, mu_q = (weights * p).sum(), (weights * q).sum()
                var_p = factor * (weights * (p - mu_p) ** 2).sum()
                var_q = factor * (weights * (q - mu_q) ** 2).sum()
                cov = factor * (weights * (p - mu_p) * (q - mu_q)).sum()
                light = (2 * mu_p * mu_q + 1e-4) / (mu_p**2 + mu_q**2 + 1e-4)
                values.append(light * (2 * cov + 9e-4) / (var_p + var_q + 9e-4))
    return np.mean(values)


def gaussian_window():
    row = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(row, row)
    return window / window.sum()


def test_psnr_of_known_errors():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    wrong = black.copy()
    wrong[0] = 255
    wrong[1, 0, 0, 0] = 51  # One of 48 values wrong by a fifth.
    errors = metrics.frame_errors(black, wrong)
    np.testing.assert_allclose(errors, [1.0, 0.04 / 48])
    np.testing.assert_allclose(metrics.psnr_of(errors), [0.0, 10 * np.log10(1200)], atol=1e-9)


def test_the_two_psnr_differ_as_defined():
    original, other = videos()
    other[0] = original[0]
    result = metrics.quality([original], [other])
    squares = (original / 255.0 - other / 255.0) ** 2
    frames = [100.0] + [-10 * np.log10(squares[i].mean()) for i in (1, 2)]
    assert result["psnr"] == pytest.approx(np.mean(frames))
    assert result["psnr_video"] == pytest.approx(-10 * np.log10(squares.mean()))
    assert result["psnr"] > result["psnr_video"] + 1


def test_gaussian_ssim_is_the_definition_and_dm_pix():
    original, other = videos(t=2, h=16, w=14)
    values = metrics.ssim_frames(original, other)
    for frame in range(2):
        wanted = ssim_by_definition(original[frame], other[frame], gaussian_window(), False)
        assert values[frame] == pytest.approx(wanted, abs=2e-5)
    plain = dm_pix.ssim(original / np.float32(255), other / np.float32(255))
    np.testing.assert_allclose(values, plain, atol=1e-5)


def test_uniform_ssim_is_the_definition():
    original, other = videos(t=2, h=12, w=13)
    window = np.full((7, 7), 1 / 49)
    values = metrics.ssim_frames(original, other, "uniform")
    for frame in range(2):
        wanted = ssim_by_definition(original[frame], other[frame], window, True)
        assert values[frame] == pytest.approx(wanted, abs=1e-9)


def test_ssim_of_equal_and_of_small_frames():
    original, _ = videos(h=10, w=10)
    assert np.isnan(metrics.ssim_frames(original, original)).all()
    np.testing.assert_allclose(metrics.ssim_frames(original, original, "uniform"), 1.0)
    assert np.isnan(metrics.ssim_frames(original[:, :6], original[:, :6], "uniform")).all()
    with pytest.raises(ValueError, match="triangle"):
        metrics.ssim_frames(original, original, "triangle")


def test_lpips_gets_the_range_and_each_frame_once(monkeypatch):
    monkeypatch.setattr(metrics, "_LPIPS_PIXELS", 3 * 32 * 32)
    original, other = videos(t=7, h=32, w=32)
    seen = []

    def network(a, b):
        seen.append(a.shape[0])
        assert a.min() >= -1 and a.max() <= 1 and a.min() < 0
        return np.abs(np.asarray(a) - np.asarray(b)).mean(axis=(1, 2, 3))

    values = metrics.lpips_frames(original, other, network)
    wanted = np.abs(original.astype(float) - other).mean(axis=(1, 2, 3)) / 127.5
    np.testing.assert_allclose(values, wanted, rtol=1e-5)
    assert seen == [3, 3, 3]
    assert np.isnan(metrics.lpips_frames(original[:, :31], other[:, :31], network)).all()


def test_lpips_of_a_module_is_that_of_its_plain_call():
    network = LPIPS("alex", rngs=nnx.Rngs(0))
    original, other = videos(t=2, h=40, w=36)
    a, b = (jnp.asarray(x, jnp.float32) / 127.5 - 1 for x in (original, other))
    values = metrics.lpips_frames(original, other, network)
    np.testing.assert_allclose(values, network(a, b), rtol=1e-4)
    assert (values > 0).all()


def test_pieces_measure_like_the_whole():
    original, other = videos(t=5)
    networks = {"vgg": lambda a, b: np.zeros(len(a)), "alex": lambda a, b: np.ones(len(a))}
    whole, pieces = metrics.Quality(networks), metrics.Quality(networks)
    whole.add(original, other)
    for start in range(0, 5, 2):
        pieces.add(original[start : start + 2], other[start : start + 2])
    assert whole.result() == pytest.approx(pieces.result())
    assert set(whole.result()) == {"psnr", "psnr_video", "ssim", "ssim_uniform"} | {
        "lpips",
        "lpips_alex",
    }
    with pytest.raises(ValueError, match="no frame"):
        metrics.Quality().result()


def test_small_frames_give_none_and_are_left_out_of_means():
    dot = np.zeros((1, 1, 1, 3), np.uint8)
    original, other = videos()
    small = metrics.quality([dot], [dot])
    assert small == {"psnr": 100.0, "psnr_video": 100.0, "ssim": None, "ssim_uniform": None}
    both = metrics.quality([dot, original], [dot, other])
    alone = metrics.quality([original], [other])
    assert both["ssim"] == alone["ssim"]
    assert both["psnr"] == pytest.approx((100 + alone["psnr"]) / 2)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((3, 24, 20, 3), np.float32), np.zeros((3, 24, 21, 3), np.uint8), np.zeros((3, 24))],
)
def test_unequal_videos_are_refused(wrong):
    with pytest.raises(ValueError):
        metrics.frame_errors(videos()[0], wrong)
