"""A prior that is small enough for tests, over the tokens of two latent frames."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.config import PriorConfig
from pyratok_jax.models.prior.layout import Layout
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.nn.text_attention import TextCondition

STRIDES = ((1, 16), (2, 16), (4, 8))
LATENT = (4, 8)
# 9 frames of 16x32 pixels: three latent frames, 18 + 10 + 24 tokens.
LAYOUT = Layout(((9, 1, 2), (5, 1, 2), (3, 2, 4)), STRIDES, LATENT)
BITS = 4


def config(order: str, **changes) -> PriorConfig:
    values = dict(strides=STRIDES, bits=BITS, latent_stride=LATENT, latent_channels=3, order=order,
                  width=32, layers=2, heads=2, kv_heads=1, text_width=6, factors=(1, 3),
                  head_layers=1)  # fmt: skip
    return PriorConfig(**(values | changes))


@functools.cache
def prior(order: str, **changes) -> Prior:
    """Shared by all tests: change a clone alone."""
    return Prior(config(order, **changes), rngs=nnx.Rngs(0))


def codes(rows: int, seed: int = 0, layout: Layout = LAYOUT) -> jax.Array:
    key = jax.random.key(seed)
    return jnp.where(jax.random.bernoulli(key, 0.5, (rows, layout.size, BITS)), 1.0, -1.0)


def text(rows: int, seed: int = 0) -> Condition:
    """Captions of three tokens; the last row has none."""
    embeddings = jax.random.normal(jax.random.key(seed), (rows, 3, 6))
    mask = (jnp.arange(rows) < max(rows - 1, 1))[:, None] & jnp.ones((1, 3), bool)
    return Condition(rows, TextCondition(embeddings, mask))
