"""Lookup-free quantisation of the final latent: one stage, or several on what is left over."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.models.pyratok.lapq import Level
from pyratok_jax.models.pyratok.lfq import quantize
from pyratok_jax.models.pyratok.quantizers.projection import LatentProjection
from pyratok_jax.nn.text_attention import TextAttention, TextCondition


class LookupFreeLatent(nnx.Module):
    """Stage i = 0, 1, ... takes the signs of what is left, scaled by 2^-i, and passes on the rest.

    r_0 = f,  q_i = sign(r_i),  r_(i+1) = r_i - 2^-i q_i,  f_hat = sum_i 2^-i q_i.

    Where a token has as many bits as a latent position has channels, f is the normalised latent
    itself, as in the layout of the published weights; elsewhere f is a linear projection of it.
    With text guidance every stage attends to the caption before it takes the signs (zero at first).
    """

    def __init__(
        self,
        *,
        channels: int,
        patch: int,
        depth: int,
        bits: int,
        vocabulary: int | None,
        text_width: int | None,
        hidden: int,
        project: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        """Build with random weights.

        Args:
            channels: of the latent.
            patch: latent positions per token, along rows and columns.
            depth: stages, each one level of tokens.
            bits: bits per token.
            vocabulary: number of valid codes; None means 2^bits.
            text_width: width of the text embeddings; None leaves the text out.
            hidden: channels of the smoothing convolution.
            project: False quantises the latent itself; needs bits == patch^2 * channels.
            rngs: for the parameters.
            dtype: of the way back to the latent.
        """
        self.depth, self.vocabulary = depth, vocabulary
        if not project and (patch != 1 or bits != channels):
            raise ValueError(
                f"{bits} bits per token do not match the {channels} channels of a latent position"
            )
        settings: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        self.projection = nnx.data(
            LatentProjection(channels, patch, bits, hidden, **settings) if project else None
        )
        heads, stages = 2 if bits % 2 == 0 else 1, range(depth if text_width is not None else 0)
        self.attention = nnx.List(
            TextAttention(bits, text_width or 0, heads, rngs=rngs) for _ in stages
        )
        self.text_prior = nnx.List(nnx.Linear(bits, bits, rngs=rngs) for _ in stages)

    def __call__(
        self, latent: Float[Array, "b t H W z"], text: TextCondition | None
    ) -> tuple[tuple[Level, ...], Float[Array, "b t H W z"]]:
        """Levels, and the latent that their codes stand for."""
        left = latent.astype(jnp.float32)
        if self.projection is not None:
            left = self.projection.features(latent)
        levels = []
        for stage in range(self.depth):
            scale = 2.0**-stage
            z, prior = left / scale, jnp.zeros_like(left)
            if self.attention and text is not None:
                update, pooled = self.attention[stage](z, text)
                z = z + update
                prior = self.text_prior[stage](jax.lax.stop_gradient(pooled))
            q = quantize(z, self.vocabulary)
            levels.append(Level(z, q, prior))
            left = left - scale * jax.lax.stop_gradient(q)
        return tuple(levels), self.synthesize(tuple(level.q for level in levels))

    def synthesize(self, codes: tuple[Float[Array, "b t h w bits"], ...]) -> Array:
        """Normalised latent of the codes of all stages."""
        total = jnp.zeros_like(codes[0])
        for stage, q in enumerate(codes):
            # Every stage sees the same feature: each passes on its share of the gradient.
            fixed = jax.lax.stop_gradient(q)
            total = total + 2.0**-stage * (fixed + (q - fixed) / self.depth)
        return total if self.projection is None else self.projection.latent(total)
