"""Text features in units of their own spread: running statistics of captions.

Hidden states of language models are dominated by a few outlier features: their softmax is one-hot,
and cosines between any two sentences are near 1. Every user of text features therefore reads them
standardised: the levels' keys and values, the targets of the alignment terms, zero-shot queries.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from pyratok_jax.nn.text_attention import TextCondition

# Part of these arrays' dotted names; the optimizer applies their gradient as it is.
NAME = "text_statistics"
_SLOWEST = 0.01  # share of a batch in the running statistics, once many batches have been seen
MANY = 1 / _SLOWEST  # batches after which it is that share
_FLOOR = 0.1  # of the median variance: a feature that hardly varies is not blown up


class Captions(NamedTuple):
    """A batch of captions in the text space.

    Attributes:
        pooled: one standardised vector per caption; means nothing where there is no caption.
        words: one standardised vector per token.
        mask: True at real tokens; a row without any has no caption.
    """

    pooled: Float[Array, "b d"]
    words: Float[Array, "b l d"]
    mask: Bool[Array, "b l"]

    @property
    def told(self) -> Float[Array, "b d"]:
        """The pooled vectors, zeros where there is no caption."""
        return jnp.where(self.present[:, None], self.pooled, 0.0)

    @property
    def present(self) -> Bool[Array, "b"]:
        """Which clips of the batch have a caption."""
        return jnp.any(self.mask, axis=1)


def pool_words(text: TextCondition) -> Float[Array, "b d"]:
    """Mean embedding of each caption's words, float32; zeros where there is no caption."""
    words = jnp.where(text.mask[..., None], text.embeddings.astype(jnp.float32), 0.0)
    count = jnp.sum(text.mask, axis=1, keepdims=True)
    return jnp.sum(words, axis=1) / jnp.maximum(count, 1)


def plain_captions(text: TextCondition) -> Captions:
    """Captions whose features are left as the language model gives them."""
    return Captions(pool_words(text), text.embeddings.astype(jnp.float32), text.mask)


class TextStatistics(nnx.Module):
    """Mean and variance per feature of caption words, and of captions (their mean words).

    They are parameters, so checkpoints, averages and later stages have them; `tracking` gives them
    a gradient which, applied as it is, moves them to the running mean over batches.
    """

    def __init__(self, width: int):
        self.word_mean = nnx.Param(jnp.zeros(width))
        self.word_variance = nnx.Param(jnp.ones(width))
        self.mean = nnx.Param(jnp.zeros(width))
        self.variance = nnx.Param(jnp.ones(width))
        self.batches = nnx.Param(jnp.zeros(()))

    def words(self, text: TextCondition) -> TextCondition:
        """The words, standardised, float32; no gradient reaches the statistics."""
        mean, variance = self.word_mean[...], self.word_variance[...]
        return text._replace(embeddings=_standardised(text.embeddings, mean, variance))

    def captions(self, text: TextCondition) -> Captions:
        """Standardised features of captions."""
        pooled = _standardised(pool_words(text), self.mean[...], self.variance[...])
        return Captions(pooled, self.words(text).embeddings, text.mask)

    def tracking(self, text: TextCondition) -> Float[Array, ""]:
        """Zero, with the gradient (statistic - batch's) * share by each statistic.

        The share is 1 / (1 + batches seen), at least 1 %. Sums run over the global batch. A batch
        with fewer than two captions changes nothing.
        """
        text = jax.lax.stop_gradient(text)
        real = text.mask[..., None].astype(jnp.float32)
        words = jnp.where(text.mask[..., None], text.embeddings.astype(jnp.float32), 0.0)
        present = jnp.any(text.mask, axis=1)
        found = (
            *_moments(words, real, (0, 1)),
            *_moments(pool_words(text), present[:, None].astype(jnp.float32), (0,)),
        )
        kept = (self.word_mean, self.word_variance, self.mean, self.variance)
        enough = (jnp.sum(present) > 1).astype(jnp.float32)
        share = enough * jnp.maximum(_SLOWEST, 1.0 / (1.0 + self.batches[...]))
        share = jax.lax.stop_gradient(share)
        total = _with_gradient(self.batches[...], -enough)
        for parameter, value in zip(kept, found, strict=True):
            total += _with_gradient(parameter[...], share * (parameter[...] - value))
        return total


def counted(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Statistics by dotted name; those that were measured without counting batches count many.

    A count of 0 would let the first batch of a training replace them.
    """
    found = dict(arrays)
    for name, batches in arrays.items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "batches" and not float(batches):
            measured = bool(jnp.any(arrays[f"{owner}.mean"] != 0))
            found[name] = jnp.full_like(batches, MANY if measured else 0.0)
    return found


def _standardised(
    x: Float[Array, "*n d"], mean: Float[Array, "d"], variance: Float[Array, "d"]
) -> Float[Array, "*n d"]:
    floor = _FLOOR * jnp.median(variance) + 1e-12
    scale = jax.lax.rsqrt(jnp.maximum(variance, floor))
    mean, scale = jax.lax.stop_gradient((mean, scale))
    return (x.astype(jnp.float32) - mean) * scale


def _moments(x: Array, weight: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    count = jnp.maximum(jnp.sum(weight), 1.0)
    mean = jnp.sum(x * weight, axis=axes) / count
    return mean, jnp.sum(jnp.square(x - mean) * weight, axis=axes) / count


def _with_gradient(x: Array, gradient: Array) -> Float[Array, ""]:
    return jnp.sum(jax.lax.stop_gradient(gradient) * (x - jax.lax.stop_gradient(x)))
