"""A tiny tokenizer, a batch and the helpers that the loss tests share."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.nn.text_attention import TextCondition
from tests.tiny_tokenizer import tiny_config, tiny_tokenizer

TEXT_WIDTH = tiny_config().text_width
BITS = tiny_config().bits


@functools.cache
def tiny_model() -> PyraTok:
    """A tokenizer whose text path is open: no zero-initialised layer hides a gradient."""
    model = nnx.clone(tiny_tokenizer().model)
    for i, block in enumerate(model.quantizer.blocks):
        for layer in (block.attention.out, block.head, block.text_prior):
            layer.kernel[...] = jax.random.normal(jax.random.key(i), layer.kernel.shape)
    return model


def clip(batch: int = 2, t: int = 5, h: int = 32, w: int = 32) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (batch, t, h, w, 3), minval=-1.0)


def captions(batch: int = 2, length: int = 3) -> TextCondition:
    """The second clip has two words, every third none."""
    embeddings = jax.random.normal(jax.random.key(2), (batch, length, TEXT_WIDTH))
    words = jnp.array([length, 2, 0])[jnp.arange(batch) % 3]
    return TextCondition(embeddings, jnp.arange(length)[None] < words[:, None])


class Embedding(nnx.Module):
    """A stand-in for E: one linear map and a vector per level."""

    def __init__(self, bits: int = BITS, width: int = TEXT_WIDTH):
        self.map = nnx.Linear(bits, width, rngs=nnx.Rngs(3))
        self.levels = nnx.Param(jax.random.normal(jax.random.key(4), (4, width)))

    def __call__(self, q, level: int, chosen=None):
        codes = q.reshape(len(q), -1, q.shape[-1])
        return self.map(codes if chosen is None else codes[:, chosen]) + self.levels[...][level]
