"""Quantisation by codebooks of vectors: plain, residual, or grouped.

A token is the index of a vector. It is carried, as all tokens are, as +-1 bits of that index, so
that files, counts and the autoregressive sequence need not know of the kind of quantiser.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt32

from pyratok_jax.models.pyratok.lapq import Level
from pyratok_jax.models.pyratok.lfq import bits_to_ids, ids_to_bits
from pyratok_jax.models.pyratok.quantizers.projection import LatentProjection
from pyratok_jax.nn.text_attention import TextCondition


class VectorLatent(nnx.Module):
    """Codebooks of vectors on the projected latent, one per level.

    Residual: level i quantises what levels before it left over, and vectors are added. Grouped:
    level i quantises the i-th part of the features, and vectors are joined. With one level both
    are plain vector quantisation. Text is not used.
    """

    def __init__(
        self,
        *,
        channels: int,
        patch: int,
        depth: int,
        bits: int,
        vocabulary: int | None,
        code_width: int,
        grouped: bool,
        hidden: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        """Build with random weights.

        Args:
            channels: of the latent.
            patch: latent positions per token, along rows and columns.
            depth: levels.
            bits: bits per token.
            vocabulary: vectors per codebook; None means 2^bits.
            code_width: components of a vector.
            grouped: see above.
            hidden: channels of the smoothing convolution.
            rngs: for the parameters.
            dtype: of the way back to the latent.
        """
        self.depth, self.bits, self.grouped = depth, bits, grouped
        width = code_width * (depth if grouped else 1)
        self.projection = LatentProjection(channels, patch, width, hidden, rngs=rngs, dtype=dtype)
        size = vocabulary or 2**bits
        self.codebooks = nnx.List(
            # Later levels of a residual see less and less.
            nnx.Param(
                (1.0 if grouped else 2.0**-level)
                * jax.random.normal(rngs.params(), (size, code_width))
            )
            for level in range(depth)
        )

    def __call__(
        self, latent: Float[Array, "b t H W z"], text: TextCondition | None
    ) -> tuple[tuple[Level, ...], Float[Array, "b t H W z"]]:
        """Levels, and the latent that their codes stand for."""
        features = self.projection.features(latent)
        parts = jnp.split(features, self.depth, axis=-1) if self.grouped else []
        left, levels, ids = features, [], []
        for level, codebook in enumerate(self.codebooks):
            wanted = parts[level] if self.grouped else left
            index = nearest(wanted, codebook[...])
            vectors = codebook[...][index]
            q = ids_to_bits(index, self.bits)
            levels.append(Level(wanted, q, jnp.zeros_like(q), vectors))
            ids.append(index)
            if not self.grouped:
                left = left - jax.lax.stop_gradient(vectors)
        chosen = jax.lax.stop_gradient(self._vectors(tuple(ids)))
        # Exactly the chosen vectors, with the gradient of the features (see lfq.straight_through).
        passed = chosen + (features - jax.lax.stop_gradient(features))
        return tuple(levels), self.projection.latent(passed)

    def synthesize(self, codes: tuple[Float[Array, "b t h w bits"], ...]) -> Array:
        """Normalised latent of the codes of all levels."""
        return self.projection.latent(self._vectors(tuple(bits_to_ids(q) for q in codes)))

    def _vectors(self, ids: tuple[UInt32[Array, "b t h w"], ...]) -> Float[Array, "b t h w d"]:
        found = [book[...][index] for book, index in zip(self.codebooks, ids, strict=True)]
        if self.grouped:
            return jnp.concatenate(found, axis=-1)
        return sum(found[1:], found[0])


def nearest(
    features: Float[Array, "*n d"], codebook: Float[Array, "codes d"]
) -> UInt32[Array, "*n"]:
    """Index of the vector with the smallest squared distance."""
    products = jnp.einsum("...d,cd->...c", features, codebook, precision="highest")
    distance = jnp.sum(codebook**2, axis=-1) - 2.0 * products
    return jnp.argmin(distance, axis=-1).astype(jnp.uint32)
