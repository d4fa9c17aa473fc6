"""Lookup-free quantisation of the final latent: one stage, or several residual ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from pyratok_jax.models.pyratok.lfq import quantize
from pyratok_jax.models.pyratok.quantizers import base, final_latent
from pyratok_jax.models.pyratok.quantizers.final_latent import LatentProjection
from pyratok_jax.nn.text_attention import TextAttention


@dataclasses.dataclass(frozen=True)
class LookupFreeConfig(base.LatentSizes):
    """Sizes; each of the `depth` levels is a stage.

    Attributes:
        text_width: width of the text embeddings; None leaves the text out.
        project: False quantises the latent itself; needs bits == patch^2 * channels.
    """

    text_width: int | None
    project: bool

    def __post_init__(self) -> None:
        if not self.project and (self.patch != 1 or self.bits != self.channels):
            raise ValueError(
                f"{self.bits} bits per token do not match the {self.channels} channels of a latent "
                "position"
            )

    @classmethod
    def residual(cls, sizes: base.TokenizerSizes) -> "LookupFreeConfig":
        """Several stages; the latent itself where a token has a bit for each of its values.

        Raises:
            ValueError: see `check_latent_grids`.
        """
        base.check_latent_grids(sizes, several_levels=True)
        direct = sizes.grids[0][1] == sizes.latent_stride[1] and sizes.bits == sizes.vae.z_dim
        return cls(**base.latent_sizes(sizes), text_width=_text_width(sizes), project=not direct)

    @classmethod
    def single(cls, sizes: base.TokenizerSizes) -> "LookupFreeConfig":
        """One projected stage.

        Raises:
            ValueError: see `check_latent_grids`.
        """
        base.check_latent_grids(sizes, several_levels=False)
        return cls(**base.latent_sizes(sizes), text_width=_text_width(sizes), project=True)


def _text_width(sizes: base.TokenizerSizes) -> int | None:
    return sizes.text_width if sizes.text_guidance else None


class LookupFreeLatent(base.Quantizer):
    """Residual stages i = 0, 1, ...: each takes the signs of the residual, scaled by 2^-i.

    r_0 = f,  q_i = sign(r_i),  r_(i+1) = r_i - 2^-i q_i,  f_hat = sum_i 2^-i q_i.

    Where a token has as many bits as a latent position has channels, f is the normalised latent
    itself, as in the layout of the published weights; elsewhere f is a linear projection of it.
    With text guidance every stage attends to the caption before it takes the signs (zero at first).
    """

    def __init__(self, config: LookupFreeConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """Build with random weights; `dtype` is that of the way back to the latent."""
        self.depth, self.vocabulary = config.depth, config.vocabulary
        # The signs of the latent itself need nothing of other frames.
        self.streams = not config.project
        bits = config.bits
        self.projection = nnx.data(
            LatentProjection(
                config.channels, config.patch, bits, config.hidden, rngs=rngs, dtype=dtype
            )
            if config.project
            else None
        )
        text_width = config.text_width
        heads, stages = (
            2 if bits % 2 == 0 else 1,
            range(config.depth if text_width is not None else 0),
        )
        self.attention = nnx.List(
            TextAttention(bits, text_width or 0, heads, rngs=rngs) for _ in stages
        )
        self.text_prior = nnx.List(nnx.Linear(bits, bits, rngs=rngs) for _ in stages)

    def quantize(self, inputs: base.Inputs) -> base.Quantized:
        """As `Quantizer.quantize`."""
        left, text = inputs.target.astype(jnp.float32), inputs.text
        if self.projection is not None:
            left = self.projection.features(inputs.target)
        levels = []
        for stage in range(self.depth):
            scale = 2.0**-stage
            z, prior = left / scale, jnp.zeros_like(left)
            if self.attention and text is not None:
                update, pooled = self.attention[stage](z, text)
                z = z + update
                prior = self.text_prior[stage](jax.lax.stop_gradient(pooled))
            q = quantize(z, self.vocabulary)
            levels.append(base.Level(z, q, prior))
            left = left - scale * jax.lax.stop_gradient(q)
        return tuple(levels), self.synthesize(tuple(level.q for level in levels))

    def synthesize(self, codes: base.Codes, cache: base.Cache = None) -> base.Latent:
        """As `Quantizer.synthesize`."""
        total = jnp.zeros_like(codes[0])
        for stage, q in enumerate(codes):
            # Every stage sees the same feature: each passes on its share of the gradient.
            fixed = jax.lax.stop_gradient(q)
            total = total + 2.0**-stage * (fixed + (q - fixed) / self.depth)
        return total if self.projection is None else self.projection.latent(total)

    def synthesize_first(self, codes: base.Codes, levels: Int[Array, ""]) -> base.Latent:
        """Of codes that are 0 in the other levels."""
        kept = (jnp.where(number < levels, q, 0.0) for number, q in enumerate(codes))
        return self.synthesize(tuple(kept))

    def fit_to(self, data: base.FitData) -> list[float]:
        """Fit the projection in closed form.

        The stages' steps 2^-i suit even channels, so it is fitted without the root's metric.
        """
        rng, latents, root = np.random.default_rng(data.seed), data.latents, data.metric_root
        if self.projection is not None:
            self._fit_signs(self.projection, latents, rng)
        return final_latent.share_left(self, latents, root)

    def _fit_signs(
        self, projection: LatentProjection, latents: base.Latents, rng: np.random.Generator
    ) -> None:
        """Principal components under a random rotation, so that bits carry equal shares."""
        x = final_latent.sample_patches(latents, projection.patch, rng)
        bits = projection.enter.kernel.shape[-1]
        mean, basis = final_latent.principal(x, bits)
        enter = basis @ np.linalg.qr(rng.normal(size=(bits, bits)))[0]
        enter = enter / (np.std((x - mean) @ enter, axis=0) + 1e-6)
        features = jnp.asarray((x - mean) @ enter, jnp.float32)
        total, left = np.zeros(features.shape), features
        for stage in range(self.depth):
            signs = jnp.where(left >= 0, 1.0, -1.0) * 2.0**-stage
            total, left = total + np.asarray(signs), left - signs
        gram = total.T @ total + 1e-3 * len(total) * np.eye(bits)
        leave = np.linalg.solve(gram, total.T @ (x - mean))
        final_latent.set_projection(projection, enter, mean, leave)
