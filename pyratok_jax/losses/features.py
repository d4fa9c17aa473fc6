"""Drift of the adapted encoder and retention of frames.

In the feature space of a frozen DINO network, and as a divergence of the encoder's posterior from
that of its frozen reference.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pyratok_jax.losses.pixel import choose_frames, take_frames
from pyratok_jax.models.dino import DinoFeatures

# Images in [-1, 1] to features. It fits the sides to its patches itself.
FeatureNetwork = Callable[[Float[Array, "n h w 3"]], DinoFeatures]
LatentMap = Callable[[Float[Array, "b t h w z"]], Float[Array, "b t h w d"]]


class Frames(NamedTuple):
    """The same moments on the latent's and on the video's time axis."""

    latent: Int[Array, "n"]
    video: Int[Array, "n"]


def choose_moments(t: int, latent_t: int, count: int, key: PRNGKeyArray | None) -> Frames:
    """`count` latent frames (0: all), and for each the last video frame that it covers."""
    chosen = choose_frames(latent_t, count, key)
    factor = (t - 1) // max(latent_t - 1, 1)
    return Frames(chosen, chosen * factor)


def feature_drift(
    latent: Float[Array, "b t h w z"],
    features: Float[Array, "n rows columns d"],
    projection: LatentMap,
) -> Float[Array, ""]:
    """KL(softmax(P(latent)) || softmax(DINO patches)) over features, mean over latent positions.

    Args:
        latent: normalised, of the chosen frames; the gradient reaches it and the projection P.
        features: DINO patches of those frames, n = b t; resized to the latent's grid, no gradient.
        projection: P, trained.
    """
    b, t, h, w, _ = latent.shape
    ours = jax.nn.log_softmax(projection(latent).astype(jnp.float32), axis=-1)
    grid = jax.lax.stop_gradient(features).astype(jnp.float32)
    grid = jax.image.resize(grid, (b * t, h, w, grid.shape[-1]), "bilinear")
    theirs = jax.nn.log_softmax(grid.reshape(b, t, h, w, -1), axis=-1)
    return jnp.mean(jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1))


def retention(original: DinoFeatures, rebuilt: DinoFeatures) -> Float[Array, ""]:
    """1 - cosine of features of input and output frames, class token and patches half each."""
    original = jax.lax.stop_gradient(original)
    summary = jnp.mean(1.0 - cosine(original.summary, rebuilt.summary))
    patches = jnp.mean(1.0 - cosine(original.patches, rebuilt.patches))
    return 0.5 * (summary + patches)


def cosine(a: Float[Array, "*n d"], b: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """Cosine similarity along the last axis; 0 for a zero vector, with a finite gradient."""

    def unit(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))

    return jnp.sum(unit(a) * unit(b), axis=-1)


def feature_terms(
    video: Float[Array, "b t h w 3"],
    rebuilt: Float[Array, "b t h w 3"],
    latent: Float[Array, "b t2 h2 w2 z"],
    network: FeatureNetwork,
    projection: LatentMap | None,
    *,
    frames: int = 0,
    key: PRNGKeyArray | None = None,
    with_retention: bool = True,
    reference: Float[Array, "b t h w 3"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Both terms, the input frames being looked at once.

    Args:
        video: clean input in [-1, 1].
        rebuilt: the output.
        latent: normalised latent of the adapted encoder.
        network: frozen.
        projection: of the drift term, which is left out without it.
        frames: latent frames per clip to look at; 0 for all.
        key: draws them.
        with_retention: False leaves that term out.
        reference: what the drift's network looks at (paper: the masked clip); None: the clean one.
    """
    moments = choose_moments(video.shape[1], latent.shape[1], frames, key)
    terms = {}
    original = None
    if with_retention or reference is None:
        original = network(jax.lax.stop_gradient(take_frames(video, moments.video)))
    if projection is not None:
        looked_at = original
        if reference is not None:
            looked_at = network(jax.lax.stop_gradient(take_frames(reference, moments.video)))
        assert looked_at is not None
        chosen = jnp.take(latent, moments.latent, axis=1)
        terms["drift_dinov3"] = feature_drift(chosen, looked_at.patches, projection)
    if with_retention:
        assert original is not None
        seen = network(take_frames(rebuilt, moments.video))
        terms["retention"] = retention(original, seen)
    return terms


def gaussian_kl(
    mean: Float[Array, "*n"],
    logvar: Float[Array, "*n"],
    frozen_mean: Float[Array, "*n"],
    frozen_logvar: Float[Array, "*n"],
    *,
    smallest_logvar: float = -30.0,
) -> Float[Array, ""]:
    """KL(N(mean, var) || N(frozen)), closed form, mean over all latent values.

    (log var_f - log var + (var + (mean - mean_f)^2) / var_f - 1) / 2. No gradient reaches the
    frozen side. Log-variances below `smallest_logvar` count as that: posteriors of a VAE can be so
    narrow that the plain divergence measures nothing but their width.
    """
    frozen_mean, frozen_logvar = jax.lax.stop_gradient((frozen_mean, frozen_logvar))
    mean, logvar, frozen_mean, frozen_logvar = (
        x.astype(jnp.float32) for x in (mean, logvar, frozen_mean, frozen_logvar)
    )
    logvar = jnp.maximum(logvar, smallest_logvar)
    frozen_logvar = jnp.maximum(frozen_logvar, smallest_logvar)
    ratio = jnp.exp(logvar - frozen_logvar)
    distance = (mean - frozen_mean) ** 2 * jnp.exp(-frozen_logvar)
    return 0.5 * jnp.mean(frozen_logvar - logvar + ratio + distance - 1.0)
