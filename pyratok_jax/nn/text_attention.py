"""Text as a condition: padded embeddings, and cross-attention of visual features to them."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from pyratok_jax.nn.causal_conv import LayerSettings


class TextCondition(NamedTuple):
    """Text embeddings of a batch of captions; `mask` is True at real tokens.

    A row without any real token has no caption.
    """

    embeddings: Float[Array, "b l d"]
    mask: Bool[Array, "b l"]


def hide_captions(text: TextCondition, share: float, key: PRNGKeyArray) -> TextCondition:
    """The captions with a random `share` of them hidden: those clips look as if they had none.

    A level that sees the caption which its codes are compared with can copy it, and learns nothing
    about the clip. So levels see some captions less often than the losses do.
    """
    hidden = jax.random.bernoulli(key, share, (text.mask.shape[0], 1))
    return text._replace(mask=text.mask & ~hidden)


class TextAttention(nnx.Module):
    """Multi-head attention from visual tokens (queries) to text tokens (keys, values).

    The output projection starts at zero: a fresh block ignores the text.
    """

    def __init__(self, width: int, text_width: int, heads: int, **settings: Unpack[LayerSettings]):
        self.heads = heads
        self.norm = nnx.RMSNorm(width, **settings)
        self.text_norm = nnx.RMSNorm(text_width, **settings)
        self.query = nnx.Linear(width, width, **settings)
        # A bias of the keys would move all of a query's scores alike, which softmax ignores.
        self.key = nnx.Linear(text_width, width, use_bias=False, **settings)
        self.value = nnx.Linear(text_width, width, **settings)
        zeros = nnx.initializers.zeros_init()
        self.out = nnx.Linear(width, width, kernel_init=zeros, **settings)

    def __call__(
        self, x: Float[Array, "b t h w d"], text: TextCondition
    ) -> tuple[Float[Array, "b t h w d"], Float[Array, "b t h w d"]]:
        """The projected update of `x`, and the pooled text values before that projection."""
        query, key, value = self._heads(x, text)
        mask = text.mask[:, None, None, :]
        pooled = jax.nn.dot_product_attention(query, key, value, mask=mask)
        pooled = self._grid(pooled, x)
        return self.out(pooled), pooled

    def weights(
        self, x: Float[Array, "b t h w d"], text: TextCondition
    ) -> Float[Array, "b t h w l"]:
        """How much each visual token attends to each text token, mean over heads; sums to 1."""
        query, key, _ = self._heads(x, text)
        scores = jnp.einsum("bnhd,blhd->bhnl", query, key) * query.shape[-1] ** -0.5
        scores = jnp.where(text.mask[:, None, None, :], scores.astype(jnp.float32), -jnp.inf)
        return self._grid(jnp.mean(jax.nn.softmax(scores, axis=-1), axis=1), x)

    def _heads(self, x: Array, text: TextCondition) -> tuple[Array, Array, Array]:
        b, t, h, w, d = x.shape
        words = self.text_norm(text.embeddings)
        # Height first: where it is split over devices, so are the flattened tokens.
        query = self.query(self.norm(x)).swapaxes(1, 2)
        query = query.reshape(b, h * t * w, self.heads, d // self.heads)
        key = self.key(words).reshape(b, -1, self.heads, d // self.heads)
        value = self.value(words).reshape(b, -1, self.heads, d // self.heads)
        return query, key, value

    @staticmethod
    def _grid(tokens: Array, x: Float[Array, "b t h w d"]) -> Float[Array, "b t h w e"]:
        """Flattened tokens, height first, back on the grid of `x`."""
        b, t, h, w = x.shape[:4]
        return tokens.reshape(b, h, t, w, -1).swapaxes(1, 2)
