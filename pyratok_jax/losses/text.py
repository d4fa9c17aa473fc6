"""Codebook term 5: codes tied to the caption of the clip that they occur in, in the text space.

`contrastive` asks which caption of the global batch belongs to which clip; `kl` is the paper's
formula, KL(c || sg(e_t)), over standardised features. In both the gradient reaches the codes.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pyratok_jax.losses.settings import POOLINGS
from pyratok_jax.models.text_statistics import Captions

_SHARPNESS = 0.07  # of the smooth maximum over tokens
_PEAKS = 2.0  # the same of features, which are of order one
# Codes of a clip, level (counted from 0), numbers of the wanted tokens or None -> the text space,
# (b, t, h, w, d) or, of chosen ones, (b, n, d).
CodeEmbedding = Callable[
    [Float[Array, "b t h w bits"], int, Int[np.ndarray, " n"] | None], Float[Array, "b *n d"]
]


def unit(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Vectors at unit length, with a finite gradient at 0."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def masked_mean(values: Float[Array, "b"], chosen: Bool[Array, "b"]) -> Float[Array, ""]:
    """Mean of the chosen values; 0 when none is chosen. What the others hold does not matter."""
    total = jnp.sum(jnp.where(chosen, values, 0.0))
    return total / jnp.maximum(jnp.sum(chosen), 1)


def code_features(
    q: Float[Array, "b t h w bits"], level: int, embed: CodeEmbedding, tokens: int = 0
) -> Float[Array, "b n d"]:
    """Codes in the text space: of all tokens, or of at most `tokens` evenly spaced ones."""
    count = math.prod(q.shape[1:-1])
    chosen = np.arange(tokens) * count // tokens if 0 < tokens < count else None
    found = embed(q, level, chosen)
    return found.reshape(len(q), -1, found.shape[-1]).astype(jnp.float32)


def same_caption(captions: Captions) -> Bool[Array, "b b"]:
    """Which clips have equal captions; False for clips without one."""
    a = unit(captions.pooled)
    equal = a @ a.T > 1.0 - 1e-5
    both = captions.present[:, None] & captions.present[None]
    return (equal | jnp.eye(len(a), dtype=bool)) & both


def similarity(
    features: Float[Array, "b n d"], captions: Captions, pooling: str
) -> Float[Array, "b c"]:
    """Similarity of each clip's codes to each caption, within [-1, 1].

    "mean": the cosine of mean code feature and caption. "words": late interaction, each word's
    cosine with its best token, averaged over the caption's words. "both": their mean. "tokens": a
    smooth maximum over tokens of the cosine with the caption (`best_tokens`). "peaks": the cosine
    with the smooth maximum over tokens of each feature (`peak_cosines`).

    Raises:
        ValueError: another pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"text_pooling {pooling!r}: expected one of {', '.join(POOLINGS)}")
    if pooling == "tokens":
        return best_tokens(features, unit(captions.pooled))
    if pooling == "peaks":
        return peak_cosines(features, unit(captions.pooled))
    found = []
    if pooling != "words":
        found.append(unit(jnp.mean(features, axis=1)) @ unit(captions.pooled).T)
    if pooling != "mean":
        words = unit(captions.words)
        scores = jnp.einsum("bnd,cld->bcln", unit(features), words)
        best = jnp.where(captions.mask[None], jnp.max(scores, axis=-1), 0.0)
        found.append(jnp.sum(best, axis=-1) / jnp.maximum(jnp.sum(captions.mask, axis=1), 1))
    return sum(found[1:], found[0]) / len(found)


def best_tokens(
    features: Float[Array, "b n d"], vectors: Float[Array, "c d"]
) -> Float[Array, "b c"]:
    """Smooth maximum over tokens of their cosine with each unit vector, within [-1, 1].

    s log mean_n exp(cos_n / s). What a caption speaks of may fill few of the tokens; the mean over
    all of them would be that of the background.
    """
    cosines = jnp.einsum("bnd,cd->bcn", unit(features), vectors)
    peak = jax.nn.logsumexp(cosines / _SHARPNESS, axis=-1) - jnp.log(features.shape[1])
    return _SHARPNESS * peak


def peak_cosines(
    features: Float[Array, "b n d"], vectors: Float[Array, "c d"]
) -> Float[Array, "b c"]:
    """Cosine of each unit vector with the smooth maximum over tokens of every feature.

    log mean_n exp(s f_n) / s. Unlike in `best_tokens`, words of a caption may be found in different
    tokens, and features that a small thing has are not averaged away.
    """
    peaks = jax.nn.logsumexp(_PEAKS * features, axis=1) - jnp.log(features.shape[1])
    return unit(peaks) @ vectors.T


def contrastive(
    features: Float[Array, "b n d"],
    captions: Captions,
    temperature: Float[Array, ""] | float,
    *,
    pooling: str = "mean",
) -> Float[Array, ""]:
    """Cross-entropy of clips against captions and of captions against clips, their mean, in nats.

    Args:
        features: codes of one level in the text space; the gradient reaches them.
        captions: of the global batch, without gradient. Equal ones are all positives; a clip
            without one is neither counted nor a negative.
        temperature: cosines are divided by it.
        pooling: see `similarity`.
    """
    captions = jax.lax.stop_gradient(captions)
    scores = similarity(features, captions, pooling) / temperature
    positive = same_caption(captions).astype(jnp.float32)
    present = captions.present
    total = jnp.zeros(())
    for logits in (scores, scores.T):
        logits = jnp.where(present[None], logits, -jnp.inf)
        share = positive / jnp.maximum(jnp.sum(positive, axis=1, keepdims=True), 1.0)
        log_p = jax.nn.log_softmax(jnp.where(present[:, None], logits, 0.0), axis=1)
        nats = -jnp.sum(jnp.where(positive > 0, share * log_p, 0.0), axis=1)
        total += 0.5 * masked_mean(nats, present)
    return total


def feature_kl(
    features: Float[Array, "b n d"], captions: Captions, temperature: float
) -> Float[Array, ""]:
    """mean KL(softmax(c / T) || softmax(sg(e_t) / T)) over features: the paper's formula.

    With standardised captions and T = 0.5 a target's entropy is about ln(d) - 2 nats.
    """
    target = jax.lax.stop_gradient(captions.pooled)[:, None] / temperature
    log_target = jax.nn.log_softmax(target, axis=-1)
    log_code = jax.nn.log_softmax(features / temperature, axis=-1)
    kl = jnp.sum(jnp.exp(log_code) * (log_code - log_target), axis=-1)
    return masked_mean(jnp.mean(kl, axis=1), captions.present)


def retrieved(features: Float[Array, "b n d"], captions: Captions) -> Float[Array, ""]:
    """Share of clips whose most similar caption of the batch is their own (or an equal one)."""
    scores = jnp.where(captions.present[None], similarity(features, captions, "mean"), -jnp.inf)
    best = jnp.argmax(scores, axis=1)
    right = jnp.take_along_axis(same_caption(captions), best[:, None], axis=1)[:, 0]
    return masked_mean(jax.lax.stop_gradient(right.astype(jnp.float32)), captions.present)
