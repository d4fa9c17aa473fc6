"""A tiny tokenizer, a batch and the helpers that the loss tests share."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pyratok_jax.models.lapq import TextCondition
from pyratok_jax.models.pyratok import PyraTok, PyraTokConfig
from pyratok_jax.models.wan_vae.config import WanVAEConfig

GRIDS = ((1, 16), (2, 16), (4, 16), (4, 8))
TEXT_WIDTH = 12
BITS = 6


def tiny_config(**changes) -> PyraTokConfig:
    vae = WanVAEConfig(base_dim=4, z_dim=4, latents_mean=(0.1,) * 4, latents_std=(1.5,) * 4)
    values = dict(vae=vae, grids=GRIDS, bits=BITS, width=16, heads=2, text_width=TEXT_WIDTH)
    return PyraTokConfig(**(values | {"synthesis_width": 8, "lora_rank": 2} | changes))


@functools.cache
def tiny_model() -> PyraTok:
    """A tokenizer whose text path is open: no zero-initialised layer hides a gradient."""
    model = PyraTok(tiny_config(), rngs=nnx.Rngs(0))
    for i, block in enumerate(model.blocks):
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

    def __call__(self, q, level: int):
        return self.map(q) + self.levels[...][level]
