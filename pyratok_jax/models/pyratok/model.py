"""PyraTok: video to four levels of tokens and back.

encode: video -> adapted VAE encoder -> stage features F(1..L) and latent -> LaPQ levels.
decode: codes of all levels -> synthesis, summed -> latent -> frozen VAE decoder -> video.
The reconstruction is a function of the codes alone; nothing continuous reaches the decoder.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt32

from pyratok_jax.models import video_vae
from pyratok_jax.models.pyratok.lapq import LaPQBlock, Level
from pyratok_jax.models.pyratok.lfq import bits_to_ids, ids_to_bits
from pyratok_jax.models.pyratok.quantizers.build import (
    LatentQuantizer,
    build_quantizer,
    check_levels,
)
from pyratok_jax.models.pyratok.synthesis import Synthesis
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.nn.grids import PRESETS, Stride, check_grids, grid_shape
from pyratok_jax.nn.lora import add_lora
from pyratok_jax.nn.stream_cache import Caches, Memory
from pyratok_jax.nn.text_attention import TextCondition

ENCODER_STAGES = 4


@dataclasses.dataclass(frozen=True)
class PyraTokConfig:
    """Sizes of the tokenizer; the defaults are the paper's.

    Attributes:
        vae: the backbone.
        grids: strides (time, space) in pixels of each level, or a name in `grids.PRESETS`.
        stages: which encoder stage (1..4) feeds each level; None takes the last ones.
        bits: bits per token.
        vocabulary: number of valid codes; None means 2^bits.
        width: channels inside a LaPQ block.
        heads: attention heads of a LaPQ block.
        text_width: width of the text embeddings.
        text_guidance: False leaves the text out of every level (ablation).
        synthesis_width: hidden channels of each level's smoothing convolution.
        lora_rank: rank of the adapters in the encoder; 0 leaves them out.
        lora_alpha: their scale, as in update = alpha / rank * A B.
        quantizer: "lapq", or for comparison a quantiser of the final latent alone (`quantizers`);
            then all grids are the same, one per level, and stages and width have no meaning.
        code_width: components of a vector, for quantisers with codebooks of vectors.
    """

    vae: WanVAEConfig
    grids: tuple[Stride, ...] = PRESETS["pyramid"]
    stages: tuple[int, ...] | None = None
    bits: int = 16
    vocabulary: int | None = None
    width: int = 512
    heads: int = 8
    text_width: int = 2048
    text_guidance: bool = True
    synthesis_width: int = 128
    lora_rank: int = 16
    lora_alpha: float = 32.0
    quantizer: str = "lapq"
    code_width: int = 16

    def __post_init__(self) -> None:
        grids = PRESETS[self.grids] if isinstance(self.grids, str) else self.grids
        object.__setattr__(self, "grids", tuple((int(dt), int(ds)) for dt, ds in grids))
        check_grids(self.grids, self.vae.temporal_factor, self.vae.spatial_factor)
        first = ENCODER_STAGES - len(self.grids) + 1
        stages = self.stages or tuple(range(first, ENCODER_STAGES + 1))
        if self.quantizer != "lapq":
            check_levels(self.quantizer, self.grids, self.latent_stride)
            stages = (ENCODER_STAGES,) * len(self.grids)
        object.__setattr__(self, "stages", tuple(stages))
        if len(stages) != len(self.grids):
            raise ValueError(f"{len(self.grids)} grids need as many stages, not {stages}")
        if not all(1 <= stage <= ENCODER_STAGES for stage in stages):
            raise ValueError(f"stages {stages} must lie within 1..{ENCODER_STAGES}")

    @property
    def level_stages(self) -> tuple[int, ...]:
        """`stages` with its default filled in."""
        assert self.stages is not None
        return self.stages

    @property
    def latent_stride(self) -> Stride:
        """Strides of the latent grid in pixels."""
        return self.vae.temporal_factor, self.vae.spatial_factor

    @property
    def spatial_multiple(self) -> int:
        """Sides of a video must be multiples of this (pad by edge replication)."""
        return max(ds for _, ds in self.grids)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; `from_dict` reads them back."""
        values = dataclasses.asdict(self)
        values["vae"] = self.vae.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PyraTokConfig":
        """The configuration written by `to_dict`.

        Raises:
            ValueError: for keys that are not fields.
        """
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown keys in the tokenizer's configuration: {sorted(unknown)}")
        values = dict(values, vae=WanVAEConfig.from_dict(values["vae"]))
        # JSON knows no tuples.
        if isinstance(values.get("grids"), list):
            values["grids"] = tuple((int(dt), int(ds)) for dt, ds in values["grids"])
        if isinstance(values.get("stages"), list):
            values["stages"] = tuple(values["stages"])
        return cls(**values)


class PyraTokOutput(NamedTuple):
    """Everything that the losses read from one pass of the encoder.

    Attributes:
        levels: one `Level` per LaPQ block, coarse to fine.
        latent: synthesised from the codes, in the VAE's normalised scale.
        target: the continuous latent that it stands for, same scale.
        mean: posterior mean of the adapted encoder, in the VAE's own scale.
        logvar: its log-variance.
        stages: the four stage features.
    """

    levels: tuple[Level, ...]
    latent: Float[Array, "b t h w z"]
    target: Float[Array, "b t h w z"]
    mean: Float[Array, "b t h w z"]
    logvar: Float[Array, "b t h w z"]
    stages: tuple[Array, ...]


class PyraTok(nnx.Module):
    """The tokenizer. Of the VAE only the encoder's adapters are meant to be trained."""

    def __init__(
        self,
        config: PyraTokConfig,
        *,
        rngs: nnx.Rngs,
        vae: WanVAE | None = None,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
    ):
        """Build with random LaPQ weights, around `vae` when one is given.

        Args:
            config: sizes.
            rngs: for every new parameter.
            vae: a VAE with pretrained weights; adapters are added to its encoder in place.
            dtype: compute dtype; parameters stay float32.
            remat: rematerialisation policy of a newly built VAE.
        """
        self.config = config
        self.vae = vae or WanVAE(config.vae, rngs=rngs, dtype=dtype, remat=remat)
        if config.lora_rank:
            add_lora(self.vae.encoder, config.lora_rank, config.lora_alpha, rngs=rngs)
        lapq = config.quantizer == "lapq"
        levels = range(len(config.grids)) if lapq else range(0)
        self.blocks = nnx.List(self._block(level, rngs, dtype) for level in levels)
        self.synthesis = nnx.List(self._synthesis(level, rngs, dtype) for level in levels)
        self.quantizer = nnx.data(None if lapq else self._quantizer(rngs, dtype))
        self.null_text = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.text_width,)))
        self.mask_value = nnx.Param(jnp.zeros((3,)))

    def _block(self, level: int, rngs: nnx.Rngs, dtype: DTypeLike) -> LaPQBlock:
        config = self.config
        stage = config.level_stages[level] - 1
        return LaPQBlock(
            stage_channels=config.vae.stage_channels[stage],
            stage_stride=config.vae.stage_strides[stage],
            stride=config.grids[level],
            latent_stride=config.latent_stride,
            latent_channels=config.vae.z_dim,
            bits=config.bits,
            vocabulary=config.vocabulary,
            width=config.width,
            heads=config.heads,
            text_width=config.text_width,
            has_previous=level > 0,
            rngs=rngs,
            dtype=dtype,
        )

    def _synthesis(self, level: int, rngs: nnx.Rngs, dtype: DTypeLike) -> Synthesis:
        config = self.config
        return Synthesis(
            config.grids[level],
            config.latent_stride,
            config.bits,
            config.vae.z_dim,
            config.synthesis_width,
            rngs=rngs,
            dtype=dtype,
        )

    def _quantizer(self, rngs: nnx.Rngs, dtype: DTypeLike) -> LatentQuantizer:
        config = self.config
        return build_quantizer(
            config.quantizer,
            grids=config.grids,
            latent_stride=config.latent_stride,
            channels=config.vae.z_dim,
            bits=config.bits,
            vocabulary=config.vocabulary,
            code_width=config.code_width,
            text_width=config.text_width if config.text_guidance else None,
            hidden=config.synthesis_width,
            rngs=rngs,
            dtype=dtype,
        )

    def encode(
        self, video: Float[Array, "b t h w 3"], text: TextCondition | None = None
    ) -> PyraTokOutput:
        """All levels of a clip.

        Args:
            video: values in [-1, 1]; t = 4k+1, sides multiples of `config.spatial_multiple`.
            text: captions; None, or a row whose mask is all False, means "no caption".
        """
        posterior = video_vae.encode(self.vae, video)
        target = self.vae.normalize(posterior.mean.astype(jnp.float32))
        with jax.named_scope("levels"):
            levels, latent = self.quantize(posterior.stages, target, text)
        return PyraTokOutput(
            levels, latent, target, posterior.mean, posterior.logvar, tuple(posterior.stages)
        )

    def quantize(
        self,
        stages: tuple[Array, ...],
        target: Float[Array, "b t h w z"],
        text: TextCondition | None,
        memory: Memory | None = None,
    ) -> tuple[tuple[Level, ...], Float[Array, "b t h w z"]]:
        """Levels of given encoder features, and the latent that their codes synthesise.

        With a memory, of one chunk of a clip (see `tokenize_next`).
        """
        text = self.condition(text, target.shape[0])
        if self.quantizer is not None:
            return self.quantizer(target, text)
        levels: list[Level] = []
        latent = jnp.zeros_like(target)
        for stage, block, synthesis in zip(
            self.config.level_stages, self.blocks, self.synthesis, strict=True
        ):
            missing = target - jax.lax.stop_gradient(latent)
            previous = levels[-1].q if levels else None
            level = block(stages[stage - 1], missing, previous, text, memory)
            latent = latent + synthesis(level.q, memory).astype(latent.dtype)
            levels.append(level)
        return tuple(levels), latent

    def condition(self, text: TextCondition | None, batch: int) -> TextCondition | None:
        """The text that the levels attend to: the learned null embedding where there is none."""
        if not self.config.text_guidance:
            return None
        null = self.null_text[...]
        if text is None:
            embeddings = jnp.broadcast_to(null, (batch, 1, null.shape[0]))
            return TextCondition(embeddings, jnp.ones((batch, 1), bool))
        missing = ~jnp.any(text.mask, axis=1)
        embeddings = jnp.where(missing[:, None, None], null, text.embeddings.astype(null.dtype))
        first = jnp.arange(text.mask.shape[1]) == 0
        return TextCondition(embeddings, text.mask | (missing[:, None] & first))

    def synthesize(
        self, codes: tuple[Float[Array, "b _t _h _w bits"], ...], memory: Memory | None = None
    ) -> Array:
        """Normalised latent (b, t', h', w', z) of the codes of all levels."""
        if self.quantizer is not None:
            return self.quantizer.synthesize(codes)
        parts = [synthesis(q, memory) for synthesis, q in zip(self.synthesis, codes, strict=True)]
        return sum(parts[1:], parts[0])

    def decode(self, latent: Float[Array, "b t h w z"]) -> Float[Array, "b T H W 3"]:
        """Video of a normalised latent, about [-1, 1], not clamped."""
        return video_vae.decode(self.vae, self.vae.denormalize(latent))

    def decode_bits(
        self, codes: tuple[Float[Array, "b _t _h _w bits"], ...]
    ) -> Float[Array, "b T H W 3"]:
        """Video of +-1 codes, not clamped."""
        return self.decode(self.synthesize(codes))

    def tokenize(
        self, video: Float[Array, "b t h w 3"], text: TextCondition | None = None
    ) -> tuple[UInt32[Array, "b _t _h _w"], ...]:
        """Token ids of every level."""
        return tuple(bits_to_ids(level.q) for level in self.encode(video, text).levels)

    def detokenize(self, ids: tuple[UInt32[Array, "b _t _h _w"], ...]) -> Float[Array, "b T H W 3"]:
        """Video of token ids, clamped to [-1, 1].

        `detokenize(tokenize(x))` is the reconstruction, in every command and every metric.
        """
        codes = tuple(ids_to_bits(level, self.config.bits) for level in ids)
        return jnp.clip(self.decode_bits(codes), -1.0, 1.0)

    @property
    def streams(self) -> bool:
        """Whether clips can be walked in chunks; the quantisers for comparison cannot."""
        return self.quantizer is None

    def tokenize_next(
        self,
        video: Float[Array, "b t h w 3"],
        text: TextCondition | None = None,
        caches: Caches | None = None,
    ) -> tuple[tuple[UInt32[Array, "b _t _h _w"], ...], Caches]:
        """`tokenize` for the next frames of a clip: 4k+1 at its start, then multiples of 4.

        Every chunk's ids, one after the other, are those of the whole clip.
        """
        memory = Memory(caches)
        posterior = self.vae.posterior(video, memory)
        target = self.vae.normalize(posterior.mean.astype(jnp.float32))
        levels, _ = self.quantize(posterior.stages, target, text, memory)
        return tuple(bits_to_ids(level.q) for level in levels), memory.caches

    def detokenize_next(
        self, ids: tuple[UInt32[Array, "b _t _h _w"], ...], caches: Caches | None = None
    ) -> tuple[Float[Array, "b T H W 3"], Caches]:
        """`detokenize` for the ids of the next chunk of a clip."""
        memory = Memory(caches)
        codes = tuple(ids_to_bits(level, self.config.bits) for level in ids)
        latent = self.vae.denormalize(self.synthesize(codes, memory))
        return jnp.clip(self.vae.decode(latent, memory), -1.0, 1.0), memory.caches

    def grid_shapes(self, t: int, h: int, w: int) -> tuple[tuple[int, int, int], ...]:
        """Token grid (t, h, w) of each level for a (padded) clip.

        Raises:
            ValueError: when the clip does not divide into the grids.
        """
        return tuple(grid_shape(stride, t, h, w) for stride in self.config.grids)
