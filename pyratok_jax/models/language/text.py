"""Captions to embeddings: the language model's hidden states after the final norm."""

import jax
from flax import nnx
from jaxtyping import Array, Bool, Int

from pyratok_jax.models.language.model import Cache, LanguageModel
from pyratok_jax.nn.text_attention import TextCondition


class TextEncoder(nnx.Module):
    """A frozen language model read as a text encoder.

    Rows whose mask is all False have no caption; their embeddings are finite but mean nothing, and
    the tokenizer puts its learned null embedding in their place.
    """

    def __init__(self, language_model: LanguageModel):
        self.language_model = language_model

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.language_model.config.width

    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> TextCondition:
        """Embeddings of tokenised captions, in the model's compute dtype. No gradient."""
        hidden = self.language_model(ids, mask).hidden
        return TextCondition(jax.lax.stop_gradient(hidden), mask)

    def read(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> tuple[TextCondition, Cache]:
        """Embeddings, and the cache from which the autoregressive pass continues.

        A caption's tokens see nothing of the video that follows them, so one pass over the text
        serves both the tokenizer's levels and the autoregressive loss.
        """
        hidden, cache = jax.lax.stop_gradient(self.language_model.read(ids, mask))
        return TextCondition(hidden, mask), cache


def mean_embedding(text: TextCondition) -> Array:
    """Mean over the real tokens (b, d), float32; zero for a row without any."""
    weights = text.mask[..., None].astype("float32")
    total = (text.embeddings.astype("float32") * weights).sum(axis=1)
    return total / weights.sum(axis=1).clip(1.0)
