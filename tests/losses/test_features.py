"""DINO terms: values by hand, frames matched to latents, and what each of them trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyratok_jax.losses import features as F
from pyratok_jax.losses.objective import objective
from pyratok_jax.losses.settings import LossSettings, LossWeights
from pyratok_jax.models.dino import DinoFeatures, LatentProjection
from pyratok_jax.models.pyratok.model import PyraTokOutput

NONE = LossWeights(**{f.name: 0.0 for f in dataclasses.fields(LossWeights)})


def network(images):
    """Stands for DINO: a fixed linear map of 8 x 8 patches, differentiable."""
    n, h, w, _ = images.shape
    patches = images.reshape(n, h // 8, 8, w // 8, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    kernel = jax.random.normal(jax.random.key(0), (192, 5))
    patches = patches.reshape(n, h // 8, w // 8, 192) @ kernel
    return DinoFeatures(patches.mean((1, 2)), jnp.zeros((n, 0, 5)), patches)


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_latent_frames_stand_for_the_last_frame_of_their_group():
    moments = F.choose_moments(17, 5, 0, None)
    assert moments.video.tolist() == [0, 4, 8, 12, 16]
    moments = F.choose_moments(17, 5, 2, None)
    assert moments.latent.tolist() == [1, 3] and moments.video.tolist() == [4, 12]
    assert F.choose_moments(1, 1, 0, None).video.tolist() == [0]


def test_feature_drift_by_hand():
    latent, features = random(1, 2, 3, 3, 4), random(2, 3, 3, 4, seed=1)
    p = np.exp(np.asarray(latent, np.float64))
    p /= p.sum(-1, keepdims=True)
    q = np.exp(np.asarray(features, np.float64))[None]
    q /= q.sum(-1, keepdims=True)
    expected = (p * np.log(p / q)).sum(-1).mean()
    np.testing.assert_allclose(F.feature_drift(latent, features, lambda x: x), expected, rtol=1e-5)
    assert abs(float(F.feature_drift(features[None], features, lambda x: x))) < 1e-6


def test_retention_by_hand_and_for_equal_frames():
    a = DinoFeatures(jnp.array([[1.0, 0.0]]), jnp.zeros((1, 0, 2)), jnp.array([[[[2.0, 0.0]]]]))
    b = DinoFeatures(jnp.array([[0.0, 3.0]]), jnp.zeros((1, 0, 2)), jnp.array([[[[1.0, 1.0]]]]))
    np.testing.assert_allclose(F.retention(a, b), 0.5 * (1 + 1 - 0.5**0.5), rtol=1e-6)
    assert abs(float(F.retention(a, a))) < 1e-6
    zero = jax.tree.map(jnp.zeros_like, a)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(F.retention, 1)(a, zero)))


def parts(video, rebuilt, latent):
    empty = jnp.zeros((2, 2, 4, 4, 3))
    return PyraTokOutput((), empty, latent, empty, empty, ()), video, rebuilt


def term(name, video, rebuilt, latent, projection, **settings):
    weights = dataclasses.replace(NONE, drift=1.0, **{name: 1.0})
    output, video, rebuilt = parts(video, rebuilt, latent)
    return objective(
        weights,
        video,
        rebuilt,
        output,
        settings=LossSettings(**settings),
        dino=network,
        projection=projection,
    )


def test_each_term_trains_what_it_should_and_only_that():
    video, rebuilt = random(2, 5, 16, 16, 3), random(2, 5, 16, 16, 3, seed=1)
    latent, projection = random(2, 2, 4, 4, 3, seed=2), LatentProjection(3, 5, rngs=nnx.Rngs(0))
    reach = {}
    for name in ("drift_dinov3", "retention"):

        def loss(video, rebuilt, latent, projection, name=name):
            return term(name, video, rebuilt, latent, projection)[0]

        gradients = nnx.grad(loss, argnums=(0, 1, 2, 3))(video, rebuilt, latent, projection)
        names = ("video", "rebuilt", "latent", "projection")
        reach[name] = {
            part
            for part, gradient in zip(names, gradients, strict=True)
            if any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradient))
        }
    assert reach == {"drift_dinov3": {"latent", "projection"}, "retention": {"rebuilt"}}


def test_only_the_frames_at_the_latents_times_count_for_retention():
    video = random(2, 5, 16, 16, 3)
    rebuilt = video.at[:, 1:4].set(0.0)
    latent = jnp.zeros((2, 2, 4, 4, 3))
    assert abs(float(term("retention", video, rebuilt, latent, None)[0])) < 1e-6
    rebuilt = video.at[:, 4].set(-video[:, 4])
    assert float(term("retention", video, rebuilt, latent, None)[0]) > 0.1
    # With one latent frame asked for, evenly spaced: the second, thus video frame 4.
    few, terms = term("retention", video, rebuilt, latent, None, dino_frames=1)
    np.testing.assert_allclose(few, 2.0, rtol=1e-5)
    assert set(terms) == {"total", "retention"}


def test_the_drift_looks_at_the_masked_clip_and_retention_at_the_clean_one():
    seen = []

    def network(images):
        seen.append(float(images.mean()))
        mean = images.mean((1, 2))
        return DinoFeatures(mean, jnp.zeros((len(images), 0, 3)), mean[:, None, None])

    video = jnp.ones((1, 5, 8, 8, 3))
    latent = jnp.zeros((1, 2, 1, 1, 4))
    projection = lambda latent: latent[..., :3]  # noqa: E731
    terms = F.feature_terms(video, 0.5 * video, latent, network, projection, reference=0 * video)
    assert seen == [1.0, 0.0, 0.5] and set(terms) == {"drift_dinov3", "retention"}
    seen.clear()
    F.feature_terms(video, 0.5 * video, latent, network, projection)
    assert seen == [1.0, 0.5]
