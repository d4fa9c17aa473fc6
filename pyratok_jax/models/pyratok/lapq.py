"""LaPQ: one level of language-aligned pyramidal quantisation (paper, Eq. 1).

q(l) = Q_l(q(l-1), F(l), e_t): the encoder's stage feature passes a lateral convolution, projections
of the previous level's codes and of the latent residual are added, the result attends to the text,
and the signs of its logits are the code. `LevelInputs` says which of these a level has.
"""

import dataclasses
from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from pyratok_jax.models.pyratok.inputs import LevelInputs
from pyratok_jax.models.pyratok.lfq import quantize
from pyratok_jax.models.pyratok.quantizers.base import Level
from pyratok_jax.models.pyratok.synthesis import Analysis
from pyratok_jax.nn.causal_conv import CausalConv3d, LayerSettings
from pyratok_jax.nn.grids import group_time, resample, space_to_depth
from pyratok_jax.nn.partitioning import convolve
from pyratok_jax.nn.settings import Stride
from pyratok_jax.nn.stream_cache import StreamCache
from pyratok_jax.nn.text_attention import TextAttention, TextCondition


class LateralConnection(nnx.Module):
    """Encoder stage feature to a level's grid: normalise, patch convolution, causal 3x3x3.

    The patch convolution takes one whole cell of the token grid (time x height x width) as its
    window, so its cost does not depend on how coarse the level is.
    """

    def __init__(
        self,
        channels: int,
        stage_stride: Stride,
        stride: Stride,
        width: int,
        normalize: bool = True,
        **settings: Unpack[LayerSettings],
    ):
        dt, ds = stride
        if dt % stage_stride[0] or ds % stage_stride[1]:
            raise ValueError(f"grid strides {stride} are finer than the stage's {stage_stride}")
        self.group = dt // stage_stride[0]
        self.patch = ds // stage_stride[1]
        self.norm = nnx.RMSNorm(channels, **settings) if normalize else None
        self.embed = nnx.Linear(self.group * self.patch**2 * channels, width, **settings)
        self.mix = CausalConv3d(width, width, (3, 3, 3), **settings)

    def __call__(
        self, feature: Float[Array, "b T H W c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w d"]:
        """The stage feature on the level's grid; with a cache, of one chunk of a clip."""
        x = feature if self.norm is None else self.norm(feature)
        patches = space_to_depth(x.astype(self.embed.dtype or x.dtype), self.patch)
        x = group_time(patches, self.group, first=cache is None or cache.first)
        x = self.embed(x)
        return x + convolve(self.mix, jax.nn.silu(x), cache)

    def whiten(self, features: Sequence[Float[Array | np.ndarray, "b T H W c"]]) -> None:
        """Have the patch convolution see whitened features, by the statistics of `features`.

        Stage features have a large mean and one or two directions with nearly all of their
        variance; a random map of them sees little else. Directions below a thousandth of the mean
        variance are not raised further.
        """
        seen = [
            jnp.asarray(x) if self.norm is None else self.norm(jnp.asarray(x)) for x in features
        ]
        rows = np.concatenate([np.asarray(x).reshape(-1, x.shape[-1]) for x in seen])
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0)
        variance, directions = np.linalg.eigh(np.cov(rows, rowvar=False))
        floor = 1e-3 * variance.mean() + 1e-12
        whitening = directions * np.maximum(variance, floor) ** -0.5 @ directions.T
        kernel = np.asarray(self.embed.kernel[...], np.float64)
        kernel = whitening @ kernel.reshape(-1, len(mean), kernel.shape[-1])
        assert self.embed.bias is not None
        bias = np.asarray(self.embed.bias[...], np.float64) - np.sum(mean @ kernel, axis=0)
        self.embed.kernel[...] = jnp.asarray(kernel.reshape(self.embed.kernel.shape), jnp.float32)
        self.embed.bias[...] = jnp.asarray(bias, jnp.float32)


@dataclasses.dataclass(frozen=True)
class LevelSizes:
    """Sizes of one level.

    Attributes:
        stage_channels: of the encoder stage that feeds it.
        stage_stride: that stage's strides (time, space) in pixels.
        stride: those of the level.
        inputs: what the level sees.
        has_previous: whether there is an earlier level.
        latent_stride: those of the latent.
        latent_channels: of the latent.
        bits: per token.
        vocabulary: number of valid codes; None means 2^bits.
        surrogate: whose gradient the sign has, see `lfq.quantize`.
        width: channels inside the block.
        heads: attention heads.
        text_width: of the text embeddings.
        normalize: whether features are scaled to a mean square of 1 at every position; the latent
            is not, whose size tells a coloured thing from a pale background.
    """

    stage_channels: int
    stage_stride: Stride
    stride: Stride
    inputs: LevelInputs
    has_previous: bool
    latent_stride: Stride
    latent_channels: int
    bits: int
    vocabulary: int | None
    surrogate: str
    width: int
    heads: int
    text_width: int
    normalize: bool


class LaPQBlock(nnx.Module):
    """One level: features, previous codes, latent residual and text to logits and codes."""

    def __init__(self, sizes: LevelSizes, **settings: Unpack[LayerSettings]):
        rngs, inputs, width, bits = settings["rngs"], sizes.inputs, sizes.width, sizes.bits
        self.vocabulary, self.surrogate = sizes.vocabulary, sizes.surrogate
        self.inputs = inputs
        stage = (sizes.stage_channels, sizes.stage_stride, sizes.stride, width, sizes.normalize)
        self.lateral = LateralConnection(*stage, **settings) if inputs.feature else None
        # Arrays of the residual are named by what it was called first: `analysis`, `missing`.
        seen = inputs.residual != "none"
        self.analysis = (
            Analysis(sizes.stride, sizes.latent_stride, bits, sizes.latent_channels, rngs=rngs)
            if seen
            else None
        )
        self.missing = nnx.Linear(bits, width, **settings) if seen else None
        before = inputs.previous and sizes.has_previous
        self.previous = nnx.Linear(bits, width, **settings) if before else None
        self.attention = (
            TextAttention(width, sizes.text_width, sizes.heads, **settings) if inputs.text else None
        )
        self.norm = nnx.RMSNorm(width, **settings)
        self.mlp_in = nnx.Linear(width, 2 * width, **settings)
        self.mlp_out = nnx.Linear(2 * width, width, **settings)
        self.head_norm = nnx.RMSNorm(width, **settings)
        # Small: with a bypass the residual alone decides the code at the start.
        small = nnx.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.head = nnx.Linear(width, bits, kernel_init=small, rngs=rngs)
        self.text_prior = (
            nnx.Linear(width, bits, kernel_init=small, rngs=rngs) if inputs.text else None
        )

    def __call__(
        self,
        feature: Float[Array, "b T1 H1 W1 c"],
        residual: Float[Array, "b T2 H2 W2 z"],
        previous: Float[Array, "b t0 h0 w0 bits"] | None,
        text: TextCondition | None,
        cache: StreamCache | None = None,
        keep: Bool[Array, "b"] | None = None,
    ) -> Level:
        """Quantise one level.

        Args:
            feature: F(l), the encoder's stage output.
            residual: the normalised latent less the synthesis of all earlier levels.
            previous: q(l-1) on its own grid; None at the first level.
            text: captions; None switches text guidance off.
            cache: state of a clip that is encoded in chunks.
            keep: clips whose residual is seen; None: all.
        """
        x, direct = self.visual(feature, residual, previous, cache, keep)
        text_logits = None
        if text is not None and self.attention is not None and self.text_prior is not None:
            update, pooled = self.attention(x, text)
            x = x + update
            # The text embeddings are frozen; the attention that pools them learns from the prior.
            text_logits = self.text_prior(pooled.astype(jnp.float32))
        # The head is float32 whatever the compute dtype: it decides signs.
        z = self.head(self.trunk(x).astype(jnp.float32))
        if direct is not None:
            z = direct + z
        text_logits = jnp.zeros_like(z) if text_logits is None else text_logits
        return Level(z, quantize(z, self.vocabulary, self.surrogate), text_logits)

    def visual(
        self,
        feature: Array,
        residual: Array,
        previous: Array | None,
        cache: StreamCache | None = None,
        keep: Bool[Array, "b"] | None = None,
    ) -> tuple[Float[Array, "b t h w d"], Float[Array, "b t h w bits"] | None]:
        """Features before they attend to the text, and the logits of a bypass."""
        first = cache is None or cache.first
        x = self.lateral(feature, cache) if self.lateral is not None else None
        direct = None
        if self.analysis is not None and self.missing is not None:
            direct = self.analysis(residual.astype(jnp.float32), first=first)
            if keep is not None:
                direct = jnp.where(keep[:, None, None, None, None], direct, 0.0)
            projected = self.missing(direct)
            x = projected if x is None else x + projected
        assert x is not None  # `LevelInputs` has one of both.
        if self.previous is not None and previous is not None:
            t, h, w = x.shape[1:4]
            x = x + self.previous(resample(previous, (t, h, w), first=first))
        return x, direct if self.inputs.residual == "bypass" else None

    def trunk(self, x: Float[Array, "b t h w d"]) -> Float[Array, "b t h w d"]:
        """What the head reads, of features that have attended to the text."""
        x = x + self.mlp_out(jax.nn.gelu(self.mlp_in(self.norm(x))))
        return self.head_norm(x)
