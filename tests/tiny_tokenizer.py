"""A tokenizer of random weights that is small enough for tests of whole commands."""

import functools

from flax import nnx

from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.tokenizer import Tokenizer

GRIDS = ((1, 16), (2, 16), (4, 16), (4, 8))


def tiny_config(**changes) -> PyraTokConfig:
    """Four levels of 6 bits over a 4x8x8 VAE; sides must be multiples of 16."""
    vae = WanVAEConfig(
        base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=(0.1,) * 4, latents_std=(1.5,) * 4
    )
    values = dict(vae=vae, grids=GRIDS, bits=6, width=16, heads=2, text_width=12)
    # Every level has every input, so that tests reach all of a block.
    values |= {"synthesis_width": 8, "lora_rank": 2, "inputs": "residual-everywhere"}
    return PyraTokConfig(**(values | changes))


@functools.cache
def tiny_tokenizer(vocabulary: int | None = None) -> Tokenizer:
    """One for all modules, which build it for seconds: change a clone alone."""
    config = tiny_config(vocabulary=vocabulary)
    return Tokenizer(PyraTok(config, rngs=nnx.Rngs(0)), checkpoint_hash="0" * 64)
