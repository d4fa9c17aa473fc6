"""Quantisation by codebooks of vectors: plain, residual, or grouped.

A token is the index of a vector. It is carried, as all tokens are, as +-1 bits of that index, so
that files, counts and the autoregressive sequence need not know of the kind of quantiser.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt32

from pyratok_jax.models.pyratok.lfq import bits_to_ids, ids_to_bits
from pyratok_jax.models.pyratok.quantizers import base, final_latent
from pyratok_jax.models.pyratok.quantizers.final_latent import LatentProjection, each_position

ROUNDS = 10  # of k-means


@dataclasses.dataclass(frozen=True)
class VectorConfig(base.LatentSizes):
    """Sizes; `vocabulary` is the number of vectors per codebook.

    Attributes:
        code_width: components of a vector.
        grouped: level i quantises the i-th part of the features; otherwise the residual.
    """

    code_width: int
    grouped: bool = False

    @classmethod
    def of(
        cls, sizes: base.TokenizerSizes, *, several_levels: bool = True, grouped: bool = False
    ) -> "VectorConfig":
        """One codebook per level; see `grouped` for what each quantises.

        Raises:
            ValueError: see `check_latent_grids`.
        """
        base.check_latent_grids(sizes, several_levels=several_levels)
        return cls(**base.latent_sizes(sizes), code_width=sizes.code_width, grouped=grouped)


class VectorLatent(base.Quantizer):
    """Codebooks of vectors on the projected latent, one per level.

    Residual: level i quantises the residual of earlier levels, and vectors are added. Grouped:
    level i quantises the i-th part of the features, and vectors are joined. With one level both
    are plain vector quantisation. Text is not used.
    """

    has_bit_logits = False

    def __init__(self, config: VectorConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """Build with random weights; `dtype` is that of the way back to the latent."""
        self.depth, self.bits, self.grouped = config.depth, config.bits, config.grouped
        width = config.code_width * (config.depth if config.grouped else 1)
        self.projection = LatentProjection(
            config.channels, config.patch, width, config.hidden, rngs=rngs, dtype=dtype
        )
        size = config.vocabulary or 2**config.bits
        self.codebooks = nnx.List(
            # Later levels of a residual see less and less.
            nnx.Param(
                (1.0 if config.grouped else 2.0**-level)
                * jax.random.normal(rngs.params(), (size, config.code_width))
            )
            for level in range(config.depth)
        )

    def quantize(self, inputs: base.Inputs) -> base.Quantized:
        """As `Quantizer.quantize`."""
        features = self.projection.features(inputs.target)
        parts = jnp.split(features, self.depth, axis=-1) if self.grouped else []
        left, levels, ids = features, [], []
        for level, codebook in enumerate(self.codebooks):
            wanted = parts[level] if self.grouped else left
            index = nearest(wanted, codebook[...])
            vectors = codebook[...][index]
            q = ids_to_bits(index, self.bits)
            levels.append(base.Level(wanted, q, jnp.zeros_like(q), vectors))
            ids.append(index)
            if not self.grouped:
                left = left - jax.lax.stop_gradient(vectors)
        chosen = jax.lax.stop_gradient(self._vectors(tuple(ids)))
        # Exactly the chosen vectors, with the gradient of the features (see lfq.straight_through).
        passed = chosen + (features - jax.lax.stop_gradient(features))
        return tuple(levels), self.projection.latent(passed)

    def synthesize(self, codes: base.Codes, cache: base.Cache = None) -> base.Latent:
        """As `Quantizer.synthesize`."""
        return self.projection.latent(self._vectors(tuple(bits_to_ids(q) for q in codes)))

    def _vectors(self, ids: tuple[UInt32[Array, "b t h w"], ...]) -> Float[Array, "b t h w d"]:
        found = [book[...][index] for book, index in zip(self.codebooks, ids, strict=True)]
        if self.grouped:
            return jnp.concatenate(found, axis=-1)
        return sum(found[1:], found[0])

    def commitment(self, level: base.Level) -> Float[Array, ""]:
        """See `vector_commitment`."""
        assert level.vectors is not None
        return vector_commitment(level.z, level.vectors)

    def fit_to(self, data: base.FitData) -> list[float]:
        """Principal components, then k-means on each group or on the residual of earlier levels."""
        rng, latents, root = np.random.default_rng(data.seed), data.latents, data.metric_root
        patches = final_latent.sample_patches(latents, self.projection.patch, rng)
        x = each_position(patches, root)
        mean, basis = final_latent.principal(x, self.projection.enter.kernel.shape[-1])
        enter = each_position(basis.T, root).T
        leave = each_position(basis.T, np.linalg.inv(root))
        final_latent.set_projection(self.projection, enter, patches.mean(axis=0), leave)
        left = (x - mean) @ basis
        parts = np.split(left, self.depth, axis=-1) if self.grouped else []
        for level, book in enumerate(self.codebooks):
            points = parts[level] if self.grouped else left
            centres = final_latent.k_means(points.astype(np.float32), book.shape[0], rng, ROUNDS)
            book[...] = jnp.asarray(centres)
            if not self.grouped:
                left = left - centres[final_latent.closest(points, centres)]
        return final_latent.share_left(self, latents, root)


def vector_commitment(
    features: Float[Array, "*n d"], vectors: Float[Array, "*n d"], *, codebook_share: float = 4.0
) -> Float[Array, ""]:
    """Commitment where codes are vectors that learn: mean (f - sg(e))^2 + share (sg(f) - e)^2.

    The second part moves the vectors to the features; with the usual weight of 0.25 on the term,
    a share of 4 gives it the weight 1.
    """
    features, vectors = features.astype(jnp.float32), vectors.astype(jnp.float32)
    to_vectors = jnp.mean((features - jax.lax.stop_gradient(vectors)) ** 2)
    to_features = jnp.mean((jax.lax.stop_gradient(features) - vectors) ** 2)
    return to_vectors + codebook_share * to_features


def nearest(
    features: Float[Array, "*n d"], codebook: Float[Array, "codes d"]
) -> UInt32[Array, "*n"]:
    """Index of the vector with the smallest squared distance."""
    products = jnp.einsum("...d,cd->...c", features, codebook, precision="highest")
    distance = jnp.sum(codebook**2, axis=-1) - 2.0 * products
    return jnp.argmin(distance, axis=-1).astype(jnp.uint32)
