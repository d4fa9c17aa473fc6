"""The fully connected CRF against pydensecrf, in two and three dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pydensecrf.densecrf as densecrf
import pytest
from scipy.ndimage import gaussian_filter

from pyratok_jax.evaluation.vision.masks import (
    KernelSettings,
    mean_field,
    mean_field_binary,
    place_positions,
    video_kernels,
)
from pyratok_jax.evaluation.vision.permutohedral import build_lattice, lattice_filter


def picture(rng, h, w):
    x = gaussian_filter(rng.standard_normal((h, w, 3)), (4, 4, 0))
    x = x + 0.1 * gaussian_filter(rng.standard_normal((h, w, 3)), (0.7, 0.7, 0))
    return ((x - x.min()) / (x.max() - x.min()) * 255).astype(np.uint8)


def energies(rng, labels, *shape):
    x = gaussian_filter(rng.standard_normal((labels, *shape)), (0,) + (3,) * len(shape)) * 8
    x = np.exp(x - x.max(axis=0))
    return (-np.log(x / x.sum(axis=0))).astype(np.float32).reshape(labels, -1)


def reference_2d(unary, image, iterations, *, sxy, weight, bilateral, srgb, colour_weight):
    field = densecrf.DenseCRF2D(image.shape[1], image.shape[0], len(unary))
    field.setUnaryEnergy(np.ascontiguousarray(unary))
    field.addPairwiseGaussian(sxy=sxy, compat=weight)
    field.addPairwiseBilateral(
        sxy=bilateral, srgb=srgb, rgbim=np.ascontiguousarray(image), compat=colour_weight
    )
    return np.array(field.inference(iterations))


@pytest.mark.parametrize("labels", [2, 3])
def test_marginals_equal_pydensecrf_on_pictures(rng, labels):
    image, unary = picture(rng, 40, 56), energies(rng, labels, 40, 56)
    expected = reference_2d(
        unary, image, 5, sxy=3, weight=3, bilateral=30, srgb=13, colour_weight=10
    )
    kernels = video_kernels(image[None], KernelSettings(colour_space=30))
    ours = np.asarray(mean_field(jnp.asarray(unary.T), kernels, 5)).T
    # The field changes the picture of the unary terms a lot: agreement is not for free.
    assert np.abs(ours - np.exp(-unary)).max() > 0.2
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    if labels == 2:
        logits = jnp.asarray((unary[0] - unary[1])[:, None])
        binary = np.asarray(jax.nn.sigmoid(mean_field_binary(logits, kernels, 5)))[:, 0]
        np.testing.assert_allclose(binary, expected[1], atol=1e-3)


@pytest.mark.parametrize(("seed", "labels", "h", "w"), [(52, 4, 120, 160), (0, 3, 41, 57)])
def test_pixels_on_the_border_of_two_simplices_count_as_there(seed, labels, h, w):
    # In the first picture one pixel lies on such a border, and a rounding decides which corners
    # are in use: the other side would move its marginals by 0.011.
    rng = np.random.default_rng(seed)
    image, unary = picture(rng, h, w), energies(rng, labels, h, w)
    expected = reference_2d(
        unary, image, 5, sxy=3, weight=3, bilateral=60, srgb=13, colour_weight=10
    )
    kernels = video_kernels(image[None], KernelSettings())
    ours = np.asarray(mean_field(jnp.asarray(unary.T), kernels, 5)).T
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_marginals_equal_pydensecrf_over_time(rng):
    video = np.stack([picture(rng, 16, 20) for _ in range(5)])
    unary = energies(rng, 2, 5, 16, 20)
    place = place_positions((5, 16, 20), 3.0, 2.0)
    both = place_positions((5, 16, 20), 15.0, 4.0)
    colour = np.concatenate([both, video.reshape(-1, 3) / np.float32(20)], axis=1)
    field = densecrf.DenseCRF(unary.shape[1], 2)
    field.setUnaryEnergy(np.ascontiguousarray(unary))
    for positions, weight in ((place, 2), (colour, 4)):
        field.addPairwiseEnergy(np.ascontiguousarray(positions.T, np.float32), compat=weight)
    expected = np.array(field.inference(5))
    kernels = video_kernels(video, KernelSettings(2, 3, 2, 4, 15, 4, 20))
    ours = np.asarray(mean_field(jnp.asarray(unary.T), kernels, 5)).T
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_filter_is_close_to_the_exact_gaussian_where_points_are_dense(rng):
    positions = rng.uniform(0, 2, (600, 2)).astype(np.float32)
    values = rng.random((600, 1)).astype(np.float32)
    kernel = np.exp(-0.5 * np.sum((positions[:, None] - positions[None]) ** 2, axis=-1))
    ours = np.asarray(lattice_filter(build_lattice(positions), jnp.asarray(values)))
    exact = kernel @ values
    ratio = ours / exact
    assert np.std(ratio) / np.mean(ratio) < 0.12


def test_lattice_weights_sum_to_one_and_pieces_agree(rng, monkeypatch):
    positions = rng.uniform(-5, 5, (1000, 5)).astype(np.float32)
    lattice = build_lattice(positions)
    np.testing.assert_allclose(np.asarray(lattice.weights).sum(axis=0), 1, atol=1e-5)
    assert np.asarray(lattice.weights).min() > -1e-5
    values = jnp.asarray(rng.random((1000, 2)), jnp.float32)
    whole = np.asarray(lattice_filter(lattice, values))
    monkeypatch.setattr("pyratok_jax.evaluation.vision.permutohedral._CHUNK", 256)
    pieces = np.asarray(lattice_filter(build_lattice(positions), values))
    np.testing.assert_allclose(whole, pieces, rtol=1e-5)


def test_positions_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        build_lattice(np.array([[np.nan, 0.0]], np.float32))
