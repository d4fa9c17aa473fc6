"""The paper's pyramid of language-aligned levels as a quantiser."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pyratok_jax.models.pyratok.inputs import InputsByLevel
from pyratok_jax.models.pyratok.lapq import LaPQBlock
from pyratok_jax.models.pyratok.quantizers import base
from pyratok_jax.models.pyratok.quantizers.lapq_fitting import LevelMaps, fit_levels
from pyratok_jax.models.pyratok.synthesis import Analysis, Synthesis
from pyratok_jax.nn.grids import Stride
from pyratok_jax.nn.text_attention import TextCondition


@dataclasses.dataclass(frozen=True)
class LaPQConfig:
    """Sizes of the pyramid.

    Attributes:
        grids: strides (time, space) in pixels of each level.
        stages: which encoder stage (1, 2, ...) feeds each level.
        inputs: what each level sees.
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
    inputs: InputsByLevel
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
            inputs=sizes.inputs_by_level,
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
    """Levels coarse to fine (Eq. 1), whose syntheses add up to the latent.

    A level's inputs say whether and how it sees the residual of the latent after earlier levels.
    """

    reads_stages = True
    streams = True

    def __init__(self, config: LaPQConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """Build with random weights."""
        self.config = config
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

    def quantize(self, inputs: base.Inputs) -> base.Quantized:
        """As `Quantizer.quantize`."""
        stages, target, text, cache, key = inputs
        levels: list[base.Level] = []
        latent = jnp.zeros_like(target)
        parts = zip(self.stages, self.blocks, self.synthesis, strict=True)
        for number, (stage, block, synthesis) in enumerate(parts):
            residual = target - jax.lax.stop_gradient(latent)
            previous = levels[-1].q if levels else None
            keep = self._keep(number, target.shape[0], key)
            level = block(stages[stage - 1], residual, previous, text, cache, keep)
            latent = latent + synthesis(level.q, cache).astype(latent.dtype)
            levels.append(level)
        return tuple(levels), latent

    def _keep(self, level: int, batch: int, key: base.Key) -> Bool[Array, "b"] | None:
        """Clips whose residual a level sees; None: all."""
        dropout = self.config.inputs[level].residual_dropout
        if key is None or not dropout:
            return None
        return ~jax.random.bernoulli(jax.random.fold_in(key, level), dropout, (batch,))

    def synthesize(self, codes: base.Codes, cache: base.Cache = None) -> base.Latent:
        """The sum of all levels' syntheses, in the order in which `__call__` adds them."""
        parts = [synthesis(q, cache) for synthesis, q in zip(self.synthesis, codes, strict=True)]
        return sum(parts[1:], parts[0])

    def fit_to(self, data: base.FitData) -> list[float]:
        """Fit every level's linear maps in turn (`lapq_fitting`)."""
        if data.stages is None and any(block.inputs.residual != "bypass" for block in self.blocks):
            raise ValueError("fitting these inputs needs the outputs of the encoder's stages")
        maps = [self._maps(level, data.stages, data.seed) for level in range(len(self.blocks))]
        return fit_levels(maps, data.latents, root=data.root, seed=data.seed, steps=data.steps)

    def _maps(self, level: int, stages: base.StoredStages | None, seed: int) -> LevelMaps:
        """What is fitted of one level; see `LevelMaps`."""
        block, synthesis, stage = self.blocks[level], self.synthesis[level], self.stages[level] - 1
        if block.inputs.residual == "bypass":
            assert block.analysis is not None
            return LevelMaps(block.analysis, synthesis)
        assert stages is not None
        inputs = [x[stage] for x in stages]
        analysis = block.analysis or Analysis(
            self.config.grids[level],
            self.config.latent_stride,
            self.config.bits,
            self.config.latent_channels,
            rngs=nnx.Rngs(seed),
        )

        @nnx.jit
        def run(block: LaPQBlock, stage: Array, residual: Array, previous: Array | None) -> Array:
            # A fresh level ignores the text.
            return block.trunk(block.visual(stage, residual, previous)[0]).astype(jnp.float32)

        def features(clip: int, residual: Array, previous: Array | None) -> Array:
            return run(block, jnp.asarray(inputs[clip]), residual, previous)

        return LevelMaps(analysis, synthesis, block.head, features)

    def attention_maps(
        self, stages: tuple[Array, ...], target: base.Latent, levels: tuple[base.Level, ...],
        text: TextCondition,
    ) -> tuple[Float[Array, "b _t _h _w l"], ...]:  # fmt: skip
        """With which weights each token of `levels` attended to the words: mean over heads."""
        latent, previous = jnp.zeros_like(target), None
        maps = []
        parts = zip(self.stages, self.blocks, self.synthesis, levels, strict=True)
        for number, (stage, block, synthesis, level) in enumerate(parts, start=1):
            if block.attention is None:
                raise ValueError(f"level {number} does not attend to text")
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
        inputs=config.inputs[level],
        has_previous=level > 0,
        rngs=rngs,
        dtype=dtype,
    )
