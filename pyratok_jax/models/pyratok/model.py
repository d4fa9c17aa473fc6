"""PyraTok: video to four levels of tokens and back.

encode: video -> adapted VAE encoder -> stage features F(1..L) and latent -> quantiser's levels.
decode: codes of all levels -> quantiser's synthesis -> latent -> frozen VAE decoder -> video.
The reconstruction is a function of the codes alone; nothing continuous reaches the decoder.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from pyratok_jax.models import video_vae
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.flips import Flips
from pyratok_jax.models.pyratok.lfq import bits_to_ids, ids_to_bits
from pyratok_jax.models.pyratok.quantizers.base import Level, build_quantizer
from pyratok_jax.models.pyratok.quantizers.lapq import LaPQ
from pyratok_jax.models.text_statistics import Captions, TextStatistics, plain_captions
from pyratok_jax.models.video_vae import VideoVAE, build_vae
from pyratok_jax.nn.grids import grid_shape
from pyratok_jax.nn.lora import add_lora
from pyratok_jax.nn.stream_cache import Caches, StreamCache
from pyratok_jax.nn.text_attention import TextCondition

# State carried from one chunk of a clip to the next: caches of the VAE, and of the levels.
ChunkCaches = tuple[Caches, Caches]


class PyraTokOutput(NamedTuple):
    """Everything that the losses read from one pass of the encoder.

    Attributes:
        levels: one `Level` per grid, coarse to fine.
        latent: synthesised from the codes, in the VAE's normalised scale.
        target: the continuous latent that it approximates, same scale.
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
        vae: VideoVAE | None = None,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
    ):
        """Build with a quantiser of random weights, around `vae` when one is given.

        Args:
            config: sizes.
            rngs: for every new parameter.
            vae: a VAE with pretrained weights; adapters are added to its encoder in place.
            dtype: compute dtype; parameters stay float32.
            remat: rematerialisation policy of a newly built VAE.
        """
        self.config = config
        self.vae = vae or build_vae(config.vae, rngs=rngs, dtype=dtype, remat=remat)
        if config.lora_rank:
            add_lora(self.vae.encoder, config.lora_rank, config.lora_alpha, rngs=rngs)
        self.quantizer = build_quantizer(config, rngs=rngs, dtype=dtype)
        self.null_text = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.text_width,)))
        self.mask_value = nnx.Param(jnp.zeros((3,)))
        self.text_statistics = (
            TextStatistics(config.text_width) if config.standardised_text else None
        )

    def encode(
        self,
        video: Float[Array, "b t h w 3"],
        text: TextCondition | None = None,
        key: PRNGKeyArray | None = None,
        flips: Flips | None = None,
    ) -> PyraTokOutput:
        """All levels of a clip.

        Args:
            video: values in [-1, 1]; frames as `config.vae.frames_rule` says, sides multiples of
                `config.spatial_multiple`.
            text: captions; None, or a row whose mask is all False, means "no caption".
            key: of the levels' residual dropout; None, outside of training, drops nothing.
            flips: bits that are flipped between levels (`quantizers.base.Inputs`).
        """
        posterior = video_vae.encode(self.vae, video)
        target = self.vae.normalize(posterior.mean.astype(jnp.float32))
        with jax.named_scope("levels"):
            levels, latent = self.quantize(posterior.stages, target, text, key=key, flips=flips)
        return PyraTokOutput(
            levels, latent, target, posterior.mean, posterior.logvar, tuple(posterior.stages)
        )

    def quantize(
        self,
        stages: tuple[Array, ...],
        target: Float[Array, "b t h w z"],
        text: TextCondition | None,
        cache: StreamCache | None = None,
        key: PRNGKeyArray | None = None,
        flips: Flips | None = None,
    ) -> tuple[tuple[Level, ...], Float[Array, "b t h w z"]]:
        """Levels of encoder features, and the latent that their codes synthesise.

        With a cache: those of one chunk of a clip (see `tokenize_next`). `key` and `flips` as for
        `encode`.
        """
        text = self.condition(text, target.shape[0])
        return self.quantizer(stages, target, text, cache, key, flips)

    def condition(self, text: TextCondition | None, batch: int) -> TextCondition | None:
        """The text that the levels attend to: the learned null embedding where there is none."""
        if not self.config.text_guidance:
            return None
        null = self.null_text[...]
        if text is not None and self.text_statistics is not None:
            text = self.text_statistics.words(text)
        if text is None:
            embeddings = jnp.broadcast_to(null, (batch, 1, null.shape[0]))
            return TextCondition(embeddings, jnp.ones((batch, 1), bool))
        missing = ~jnp.any(text.mask, axis=1)
        embeddings = jnp.where(missing[:, None, None], null, text.embeddings.astype(null.dtype))
        first = jnp.arange(text.mask.shape[1]) == 0
        return TextCondition(embeddings, text.mask | (missing[:, None] & first))

    def captions(self, text: TextCondition) -> Captions:
        """Captions in the text space, where codes are compared with them."""
        if self.text_statistics is None:
            return plain_captions(text)
        return self.text_statistics.captions(text)

    def synthesize(
        self, codes: tuple[Float[Array, "b _t _h _w bits"], ...], cache: StreamCache | None = None
    ) -> Array:
        """Normalised latent (b, t', h', w', z) of the codes of all levels."""
        return self.quantizer.synthesize(codes, cache)

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

    def tokenize_flipped(
        self, video: Float[Array, "b t h w 3"], text: TextCondition | None, flips: Flips
    ) -> tuple[tuple[UInt32[Array, "b _t _h _w"], ...], tuple[UInt32[Array, "b _t _h _w"], ...]]:
        """Token ids of every level given the flipped coarser ones, and all levels as flipped.

        Raises:
            ValueError: levels that do not see one another (`Quantizer.requantizes`).
        """
        levels = self.encode(video, text, flips=flips).levels
        read = tuple(bits_to_ids(level.read) for level in levels if level.read is not None)
        return tuple(bits_to_ids(level.q) for level in levels), read

    def detokenize(self, ids: tuple[UInt32[Array, "b _t _h _w"], ...]) -> Float[Array, "b T H W 3"]:
        """Video of token ids, clamped to [-1, 1].

        `detokenize(tokenize(x))` is the reconstruction, in every command and every metric.
        """
        codes = tuple(ids_to_bits(level, self.config.bits) for level in ids)
        return jnp.clip(self.decode_bits(codes), -1.0, 1.0)

    def detokenize_first(
        self, ids: tuple[UInt32[Array, "b _t _h _w"], ...], levels: Int[Array, ""]
    ) -> Float[Array, "b T H W 3"]:
        """Video of the first `levels` levels alone, clamped to [-1, 1].

        Raises:
            ValueError: the quantiser has no latent of its first levels (`Quantizer.builds_up`).
        """
        codes = tuple(ids_to_bits(level, self.config.bits) for level in ids)
        return jnp.clip(self.decode(self.quantizer.synthesize_first(codes, levels)), -1.0, 1.0)

    @property
    def streams(self) -> bool:
        """Whether clips can be encoded and decoded in chunks with carried caches."""
        return self.quantizer.streams and self.config.vae.streams

    def tokenize_next(
        self,
        video: Float[Array, "b t h w 3"],
        text: TextCondition | None = None,
        caches: ChunkCaches | None = None,
    ) -> tuple[tuple[UInt32[Array, "b _t _h _w"], ...], ChunkCaches]:
        """`tokenize` for the next frames of a clip.

        The first chunk has 1 + a multiple of the VAE's temporal factor, later ones a multiple. The
        ids of all chunks, concatenated in time, are those of the whole clip.
        """
        vae_caches, level_caches = caches or (None, None)
        posterior, vae_caches = video_vae.encode_next(self.vae, video, vae_caches)
        target = self.vae.normalize(posterior.mean.astype(jnp.float32))
        cache = StreamCache(self.quantizer, level_caches)
        levels, _ = self.quantize(posterior.stages, target, text, cache)
        return tuple(bits_to_ids(level.q) for level in levels), (vae_caches, cache.caches)

    def detokenize_next(
        self, ids: tuple[UInt32[Array, "b _t _h _w"], ...], caches: ChunkCaches | None = None
    ) -> tuple[Float[Array, "b T H W 3"], ChunkCaches]:
        """`detokenize` for the ids of the next chunk of a clip."""
        vae_caches, level_caches = caches or (None, None)
        cache = StreamCache(self.quantizer, level_caches)
        codes = tuple(ids_to_bits(level, self.config.bits) for level in ids)
        latent = self.vae.denormalize(self.synthesize(codes, cache))
        video, vae_caches = video_vae.decode_next(self.vae, latent, vae_caches)
        return jnp.clip(video, -1.0, 1.0), (vae_caches, cache.caches)

    def grid_shapes(self, t: int, h: int, w: int) -> tuple[tuple[int, int, int], ...]:
        """Token grid (t, h, w) of each level for a (padded) clip.

        Raises:
            ValueError: when the clip does not divide into the grids.
        """
        return tuple(grid_shape(stride, t, h, w) for stride in self.config.grids)


def attention_maps(
    model: PyraTok, video: Float[Array, "b t h w 3"], text: TextCondition
) -> tuple[Float[Array, "b _t _h _w l"], ...]:
    """Attention of every token of every level over the words, mean over heads; sums to 1.

    Args:
        model: a tokenizer of LaPQ levels with text guidance.
        video: in [-1, 1], as `PyraTok.encode` takes it.
        text: captions; a row without words gives its weight to the first place, where the learned
            null caption stands.

    Raises:
        ValueError: when the tokenizer has no levels that attend to text.
    """
    condition = model.condition(text, video.shape[0])
    if condition is None or not isinstance(model.quantizer, LaPQ):
        raise ValueError("this tokenizer's levels do not attend to text")
    output = model.encode(video, text)
    return model.quantizer.attention_maps(output.stages, output.target, output.levels, condition)
