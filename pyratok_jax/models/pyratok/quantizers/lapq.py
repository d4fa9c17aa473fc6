"""The paper's pyramid of language-aligned levels as a quantiser."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pyratok_jax.models.pyratok.flips import flipped_level
from pyratok_jax.models.pyratok.lapq import LaPQBlock, LevelSizes
from pyratok_jax.models.pyratok.quantizers import base
from pyratok_jax.models.pyratok.quantizers.lapq_fitting import KeptLevel, LevelMaps, fit_levels
from pyratok_jax.models.pyratok.synthesis import Analysis, Synthesis
from pyratok_jax.nn.text_attention import TextCondition


@dataclasses.dataclass(frozen=True)
class LaPQConfig:
    """Sizes of the pyramid.

    Attributes:
        levels: each level's, coarse to fine.
        stages: which encoder stage (1, 2, ...) feeds each level; the number after the last one is
            the latent.
        synthesis_width: hidden channels of each level's smoothing convolution.
    """

    levels: tuple[LevelSizes, ...]
    stages: tuple[int, ...]
    synthesis_width: int

    @classmethod
    def of(cls, sizes: base.TokenizerSizes) -> "LaPQConfig":
        """Those of a tokenizer."""
        levels = zip(sizes.level_stages, sizes.grids, sizes.inputs_by_level, strict=True)
        channels = (*sizes.vae.stage_channels, sizes.vae.z_dim)
        strides = (*sizes.vae.stage_strides, sizes.latent_stride)
        return cls(
            tuple(
                LevelSizes(
                    stage_channels=channels[stage - 1],
                    stage_stride=strides[stage - 1],
                    stride=stride,
                    inputs=inputs,
                    has_previous=number > 0,
                    latent_stride=sizes.latent_stride,
                    latent_channels=sizes.vae.z_dim,
                    bits=sizes.bits,
                    vocabulary=sizes.vocabulary,
                    surrogate=sizes.surrogate,
                    width=sizes.width,
                    heads=sizes.heads,
                    text_width=sizes.text_width,
                    normalize=stage < len(channels),
                )
                for number, (stage, stride, inputs) in enumerate(levels)
            ),
            sizes.level_stages,
            sizes.synthesis_width,
        )


class LaPQ(base.Quantizer):
    """Levels coarse to fine (Eq. 1), whose syntheses add up to the latent.

    A level's inputs say whether and how it sees the residual of the latent after earlier levels.
    """

    reads_stages = True
    streams = True
    builds_up = True
    level_parts = ("blocks", "synthesis")

    def __init__(self, config: LaPQConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """Build with random weights."""
        self.config = config
        self.stages = config.stages
        self.blocks = nnx.List(LaPQBlock(level, rngs=rngs, dtype=dtype) for level in config.levels)
        self.synthesis = nnx.List(
            Synthesis(
                level.stride,
                level.latent_stride,
                level.bits,
                level.latent_channels,
                config.synthesis_width,
                rngs=rngs,
                dtype=dtype,
            )
            for level in config.levels
        )

    @property
    def requantizes(self) -> bool:
        """Whether a later level sees what earlier ones left, or their codes."""
        later = [level.inputs for level in self.config.levels[1:]]
        return any(seen.residual != "none" or seen.previous for seen in later)

    def quantize(self, inputs: base.Inputs) -> base.Quantized:
        """As `Quantizer.quantize`."""
        stages, target, text, cache, key, flips = inputs
        levels: list[base.Level] = []
        latent, previous = jnp.zeros_like(target), None
        parts = zip(self.stages, self.blocks, self.synthesis, strict=True)
        for number, (stage, block, synthesis) in enumerate(parts):
            residual = target - jax.lax.stop_gradient(latent)
            keep = self._keep(number, target.shape[0], key)
            feature = (*stages, target)[stage - 1]
            level = block(feature, residual, previous, text, cache, keep)
            previous = level.q
            if flips is not None:
                frames = self._latent_frames(number, previous.shape[1])
                previous = flipped_level(previous, flips, number, frames, target.shape[1])
                level = level._replace(read=previous)
            latent = latent + synthesis(previous, cache).astype(latent.dtype)
            levels.append(level)
        return tuple(levels), latent

    def _latent_frames(self, level: int, frames: int) -> Int[np.ndarray, " t"]:
        """The latent frame that each of a level's token frames lies in."""
        sizes = self.config.levels[level]
        return -(-np.arange(frames) * sizes.stride[0] // sizes.latent_stride[0])

    def _keep(self, level: int, batch: int, key: base.Key) -> Bool[Array, "b"] | None:
        """Clips whose residual a level sees; None: all."""
        dropout = self.config.levels[level].inputs.residual_dropout
        if key is None or not dropout:
            return None
        return ~jax.random.bernoulli(jax.random.fold_in(key, level), dropout, (batch,))

    def synthesize(self, codes: base.Codes, cache: base.Cache = None) -> base.Latent:
        """The sum of all levels' syntheses, in the order in which `__call__` adds them."""
        parts = [synthesis(q, cache) for synthesis, q in zip(self.synthesis, codes, strict=True)]
        return sum(parts[1:], parts[0])

    def synthesize_first(self, codes: base.Codes, levels: Int[Array, ""]) -> base.Latent:
        """The sum of the first levels' syntheses."""
        parts = [synthesis(q) for synthesis, q in zip(self.synthesis, codes, strict=True)]
        kept = [jnp.where(number < levels, part, 0.0) for number, part in enumerate(parts)]
        return sum(kept[1:], kept[0])

    def fit_to(self, data: base.FitData) -> list[float]:
        """Fit every level's linear maps in turn (`lapq_fitting`)."""
        if data.stages is None and any(block.inputs.residual != "bypass" for block in self.blocks):
            raise ValueError("fitting these inputs needs the outputs of the encoder's stages")
        stages = data.stages and [
            (*x, latent) for x, latent in zip(data.stages, data.latents, strict=True)
        ]
        maps = [
            self._kept(level, stages, data.text)
            if level < data.kept
            else self._maps(level, stages, data.seed)
            for level in range(len(self.blocks))
        ]
        return fit_levels(maps, data.latents, root=data.root, seed=data.seed, steps=data.steps)

    def _maps(self, level: int, stages: base.StoredStages | None, seed: int) -> LevelMaps:
        """What is fitted of one level; see `LevelMaps`."""
        block, synthesis, stage = self.blocks[level], self.synthesis[level], self.stages[level] - 1
        if block.inputs.residual == "bypass":
            assert block.analysis is not None
            return LevelMaps(block.analysis, synthesis)
        assert stages is not None
        inputs, sizes = [x[stage] for x in stages], self.config.levels[level]
        if block.lateral is not None:
            block.lateral.whiten(inputs)
        analysis = block.analysis or Analysis(
            sizes.stride,
            sizes.latent_stride,
            sizes.bits,
            sizes.latent_channels,
            rngs=nnx.Rngs(seed),
        )

        @nnx.jit
        def run(block: LaPQBlock, stage: Array, residual: Array, previous: Array | None) -> Array:
            # A fresh level ignores the text.
            return block.trunk(block.visual(stage, residual, previous)[0]).astype(jnp.float32)

        def features(clip: int, residual: Array, previous: Array | None) -> Array:
            return run(block, jnp.asarray(inputs[clip]), residual, previous)

        return LevelMaps(analysis, synthesis, block.head, features)

    def _kept(self, level: int, stages: base.StoredStages | None, text: base.Text) -> KeptLevel:
        """What a level that is not fitted does; see `KeptLevel`."""
        stage = self.stages[level] - 1

        @nnx.jit
        def run(block: LaPQBlock, feature: Array, residual: Array, previous: Array | None) -> Array:
            return block(feature, residual, previous, _for_all(text, len(residual))).q

        def codes(clip: int, residual: Array, previous: Array | None) -> Array:
            # Without a feature that the level reads: a bypass alone.
            feature = residual if stages is None else jnp.asarray(stages[clip][stage])
            return run(self.blocks[level], feature, residual, previous)

        return KeptLevel(codes, self.synthesis[level])

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
            x, _ = block.visual((*stages, target)[stage - 1], target - latent, previous)
            maps.append(block.attention.weights(x, text))
            latent = latent + synthesis(level.q).astype(latent.dtype)
            previous = level.q
        return tuple(maps)


def _for_all(text: base.Text, clips: int) -> base.Text:
    """One row of text for each clip."""
    return text and TextCondition(*(jnp.repeat(x, clips, axis=0) for x in text))
