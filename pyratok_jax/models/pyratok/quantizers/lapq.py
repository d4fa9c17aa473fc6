"""The paper's pyramid of language-aligned levels as a quantiser."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.models.pyratok.lapq import LaPQBlock
from pyratok_jax.models.pyratok.quantizers import base
from pyratok_jax.models.pyratok.quantizers.lapq_fitting import fit_levels
from pyratok_jax.models.pyratok.synthesis import Synthesis
from pyratok_jax.nn.grids import Stride
from pyratok_jax.nn.text_attention import TextCondition


@dataclasses.dataclass(frozen=True)
class LaPQConfig:
    """Sizes of the pyramid.

    Attributes:
        grids: strides (time, space) in pixels of each level.
        stages: which encoder stage (1, 2, ...) feeds each level.
        stage_channels: channels of those stages.
        stage_strides: their strides in pixels.
        latent_stride: strides of the latent in pixels.
        latent_channels: its channels.
        bits: bits per token.
        vocabulary: number of valid codes; None means 2^bits.
        width: channels inside a block.
        heads: attention heads of a block.
        text_width: width of the text embeddings.
        synthesis_width: hidden channels of each level's smoothing convolution.
    """

    grids: tuple[Stride, ...]
    stages: tuple[int, ...]
    stage_channels: tuple[int, ...]
    stage_strides: tuple[Stride, ...]
    latent_stride: Stride
    latent_channels: int
    bits: int
    vocabulary: int | None
    width: int
    heads: int
    text_width: int
    synthesis_width: int

    @classmethod
    def of(cls, sizes: base.TokenizerSizes) -> "LaPQConfig":
        """Those of a tokenizer."""
        stages = sizes.level_stages
        return cls(
            grids=sizes.grids,
            stages=stages,
            stage_channels=tuple(sizes.vae.stage_channels[stage - 1] for stage in stages),
            stage_strides=tuple(sizes.vae.stage_strides[stage - 1] for stage in stages),
            latent_stride=sizes.latent_stride,
            latent_channels=sizes.vae.z_dim,
            bits=sizes.bits,
            vocabulary=sizes.vocabulary,
            width=sizes.width,
            heads=sizes.heads,
            text_width=sizes.text_width,
            synthesis_width=sizes.synthesis_width,
        )


class LaPQ(base.Quantizer):
    """Levels coarse to fine, each quantising the latent residual of the earlier ones (Eq. 1)."""

    reads_stages = True
    streams = True

    def __init__(self, config: LaPQConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """Build with random weights."""
        self.stages = config.stages
        levels = range(len(config.grids))
        self.blocks = nnx.List(_block(config, level, rngs, dtype) for level in levels)
        self.synthesis = nnx.List(
            Synthesis(
                grid,
                config.latent_stride,
                config.bits,
                config.latent_channels,
                config.synthesis_width,
                rngs=rngs,
                dtype=dtype,
            )
            for grid in config.grids
        )

    def __call__(
        self, stages: base.Stages, target: base.Latent, text: base.Text, cache: base.Cache = None
    ) -> base.Quantized:
        """As `Quantizer.__call__`."""
        levels: list[base.Level] = []
        latent = jnp.zeros_like(target)
        for stage, block, synthesis in zip(self.stages, self.blocks, self.synthesis, strict=True):
            missing = target - jax.lax.stop_gradient(latent)
            previous = levels[-1].q if levels else None
            level = block(stages[stage - 1], missing, previous, text, cache)
            latent = latent + synthesis(level.q, cache).astype(latent.dtype)
            levels.append(level)
        return tuple(levels), latent

    def synthesize(self, codes: base.Codes, cache: base.Cache = None) -> base.Latent:
        """The sum of all levels' syntheses, in the order in which `__call__` adds them."""
        parts = [synthesis(q, cache) for synthesis, q in zip(self.synthesis, codes, strict=True)]
        return sum(parts[1:], parts[0])

    def fit(
        self, latents: base.Latents, *, root: base.Root = None, seed: int = 0, steps: int = 300
    ) -> list[float]:
        """Fit every level's linear maps in turn (`lapq_fitting`)."""
        maps = [(block.analysis, u) for block, u in zip(self.blocks, self.synthesis, strict=True)]
        return fit_levels(maps, latents, root=root, seed=seed, steps=steps)

    def attention_maps(
        self, stages: tuple[Array, ...], target: base.Latent, levels: tuple[base.Level, ...],
        text: TextCondition,
    ) -> tuple[Float[Array, "b _t _h _w l"], ...]:  # fmt: skip
        """With which weights each token of `levels` attended to the words: mean over heads."""
        latent, previous = jnp.zeros_like(target), None
        maps = []
        parts = zip(self.stages, self.blocks, self.synthesis, levels, strict=True)
        for stage, block, synthesis, level in parts:
            x, _ = block.visual(stages[stage - 1], target - latent, previous)
            maps.append(block.attention.weights(x, text))
            latent = latent + synthesis(level.q).astype(latent.dtype)
            previous = level.q
        return tuple(maps)


def _block(config: LaPQConfig, level: int, rngs: nnx.Rngs, dtype: DTypeLike) -> LaPQBlock:
    return LaPQBlock(
        stage_channels=config.stage_channels[level],
        stage_stride=config.stage_strides[level],
        stride=config.grids[level],
        latent_stride=config.latent_stride,
        latent_channels=config.latent_channels,
        bits=config.bits,
        vocabulary=config.vocabulary,
        width=config.width,
        heads=config.heads,
        text_width=config.text_width,
        has_previous=level > 0,
        rngs=rngs,
        dtype=dtype,
    )
