"""The small trained map from latents to the feature space of a DINO network."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class LatentProjection(nnx.Module):
    """Normalised latents to DINO's width, position by position: linear, GELU, linear.

    It is small, so that the latent itself has to hold the features.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        hidden: int = 256,
        dtype: DTypeLike = jnp.float32,
    ):
        self.hidden = nnx.Linear(channels, hidden, rngs=rngs, dtype=dtype)
        self.out = nnx.Linear(hidden, width, rngs=rngs, dtype=dtype)

    def __call__(self, latent: Float[Array, "b t h w z"]) -> Float[Array, "b t h w d"]:
        """Features of every latent position."""
        return self.out(jax.nn.gelu(self.hidden(latent)))
