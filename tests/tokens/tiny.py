"""A tiny tokenizer with random weights whose tokens depend on the caption."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyratok_jax.models.lapq import TextCondition
from pyratok_jax.models.pyratok import PyraTok, PyraTokConfig
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.tokenizer import Tokenizer

GRIDS = ((1, 16), (2, 16), (4, 16), (4, 8))


class LetterEmbeddings(Tokenizer):
    """Embeds captions by their letters, in place of a language model."""

    def embed(self, captions):
        embeddings = np.zeros((len(captions), 8, self.config.text_width), np.float32)
        mask = np.zeros((len(captions), 8), bool)
        for row, caption in enumerate(captions):
            for place, letter in enumerate((caption or "")[-8:]):
                embeddings[row, place] = np.sin(ord(letter) * np.arange(1, 13))
                mask[row, place] = True
        return TextCondition(jnp.asarray(embeddings), jnp.asarray(mask))


@functools.cache
def tiny_tokenizer(seed: int = 0, bits: int = 6) -> Tokenizer:
    vae = WanVAEConfig(base_dim=4, z_dim=4, latents_mean=(0.1,) * 4, latents_std=(1.5,) * 4)
    config = PyraTokConfig(
        vae=vae, grids=GRIDS, bits=bits, width=16, heads=2, text_width=12, synthesis_width=8,
        lora_rank=2,
    )  # fmt: skip
    model = PyraTok(config, rngs=nnx.Rngs(seed))
    for block in model.blocks:
        kernel = block.attention.out.kernel
        kernel[...] = jax.random.normal(jax.random.key(7), kernel.shape)
        block.head.kernel[...] = jax.random.normal(jax.random.key(8), block.head.kernel.shape)
    return LetterEmbeddings(model, checkpoint_hash=f"tiny-{seed}-{bits}")
