"""LaPQ: one level of language-aligned pyramidal quantisation (paper, Eq. 1).

q(l) = Q_l(q(l-1), F(l), e_t): the encoder's stage feature passes a lateral convolution, projections
of the previous level's codes and of the latent residual are added, the result attends to the text,
and the signs of its logits are the code.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.models.pyratok.lfq import quantize
from pyratok_jax.models.pyratok.quantizers.base import Level
from pyratok_jax.models.pyratok.synthesis import Analysis
from pyratok_jax.nn.causal_conv import CausalConv3d
from pyratok_jax.nn.grids import Stride, group_time, resample, space_to_depth
from pyratok_jax.nn.partitioning import convolve
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
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        dt, ds = stride
        if dt % stage_stride[0] or ds % stage_stride[1]:
            raise ValueError(f"grid strides {stride} are finer than the stage's {stage_stride}")
        self.group = dt // stage_stride[0]
        self.patch = ds // stage_stride[1]
        self.norm = nnx.RMSNorm(channels, rngs=rngs, dtype=dtype)
        self.embed = nnx.Linear(
            self.group * self.patch**2 * channels, width, rngs=rngs, dtype=dtype
        )
        self.mix = CausalConv3d(width, width, (3, 3, 3), rngs=rngs, dtype=dtype)

    def __call__(
        self, feature: Float[Array, "b T H W c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w d"]:
        """The stage feature on the level's grid; with a cache, of one chunk of a clip."""
        patches = space_to_depth(self.norm(feature), self.patch)
        x = group_time(patches, self.group, first=cache is None or cache.first)
        x = self.embed(x)
        return x + convolve(self.mix, jax.nn.silu(x), cache)


class LaPQBlock(nnx.Module):
    """One level: features, previous codes, missing latent and text to logits and codes."""

    def __init__(
        self,
        *,
        stage_channels: int,
        stage_stride: Stride,
        stride: Stride,
        latent_stride: Stride,
        latent_channels: int,
        bits: int,
        vocabulary: int | None,
        width: int,
        heads: int,
        text_width: int,
        has_previous: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.vocabulary = vocabulary
        self.lateral = LateralConnection(
            stage_channels, stage_stride, stride, width, rngs=rngs, dtype=dtype
        )
        self.analysis = Analysis(stride, latent_stride, bits, latent_channels, rngs=rngs)
        self.missing = nnx.Linear(bits, width, rngs=rngs, dtype=dtype)
        self.previous = nnx.Linear(bits, width, rngs=rngs, dtype=dtype) if has_previous else None
        self.attention = TextAttention(width, text_width, heads, rngs=rngs, dtype=dtype)
        self.norm = nnx.RMSNorm(width, rngs=rngs, dtype=dtype)
        self.mlp_in = nnx.Linear(width, 2 * width, rngs=rngs, dtype=dtype)
        self.mlp_out = nnx.Linear(2 * width, width, rngs=rngs, dtype=dtype)
        self.head_norm = nnx.RMSNorm(width, rngs=rngs, dtype=dtype)
        # Small, so that at the start the missing latent alone decides the code.
        small = nnx.initializers.variance_scaling(0.01, "fan_in", "normal")
        self.head = nnx.Linear(width, bits, kernel_init=small, rngs=rngs)
        self.text_prior = nnx.Linear(width, bits, kernel_init=small, rngs=rngs)

    def __call__(
        self,
        feature: Float[Array, "b T1 H1 W1 c"],
        missing: Float[Array, "b T2 H2 W2 z"],
        previous: Float[Array, "b t0 h0 w0 bits"] | None,
        text: TextCondition | None,
        cache: StreamCache | None = None,
    ) -> Level:
        """Quantise one level.

        Args:
            feature: F(l), the encoder's stage output.
            missing: the normalised latent less the synthesis of all earlier levels.
            previous: q(l-1) on its own grid; None at the first level.
            text: captions; None switches text guidance off.
            cache: state of a clip that is encoded in chunks.
        """
        x, direct = self.visual(feature, missing, previous, cache)
        text_logits = jnp.zeros_like(direct)
        if text is not None:
            update, pooled = self.attention(x, text)
            x = x + update
            # The text embeddings are frozen; the attention that pools them learns from the prior.
            text_logits = self.text_prior(pooled.astype(jnp.float32))
        x = x + self.mlp_out(jax.nn.gelu(self.mlp_in(self.norm(x))))
        z = direct + self.head(self.head_norm(x).astype(jnp.float32))
        return Level(z, quantize(z, self.vocabulary), text_logits)

    def visual(
        self,
        feature: Array,
        missing: Array,
        previous: Array | None,
        cache: StreamCache | None = None,
    ) -> tuple[Float[Array, "b t h w d"], Float[Array, "b t h w bits"]]:
        """Features before they attend to the text, and the logits of the missing latent."""
        first = cache is None or cache.first
        direct = self.analysis(missing.astype(jnp.float32), first=first)
        x = self.lateral(feature, cache) + self.missing(direct)
        if self.previous is not None and previous is not None:
            t, h, w = direct.shape[1:4]
            x = x + self.previous(resample(previous, (t, h, w), first=first))
        return x, direct
