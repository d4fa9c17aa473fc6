"""The tokenizer in training: its modules, which of them train, and its loss."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.data.buckets import parse_buckets
from pyratok_jax.data.padding import to_model_range
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.losses.autoregressive import Text, autoregressive_loss
from pyratok_jax.losses.objective import Posterior, objective
from pyratok_jax.losses.settings import LossSettings, LossWeights
from pyratok_jax.metrics.code_usage import usage_metrics
from pyratok_jax.models import video_vae
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.dino import Dino, DinoFeatures, LatentProjection, fit_sides
from pyratok_jax.models.language.model import LanguageModel, TextEncoder
from pyratok_jax.models.masking import mask_video
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.inputs import level_inputs
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.settings import MaskingConfig
from pyratok_jax.models.vae_config import VideoVAEConfig
from pyratok_jax.models.video_vae import VideoVAE
from pyratok_jax.nn import partitioning
from pyratok_jax.nn.lora import LoRAParam, without_adapters
from pyratok_jax.nn.settings import PRESETS
from pyratok_jax.nn.text_attention import TextCondition, hide_captions
from pyratok_jax.training.loop.contracts import DeviceBatch, LossAndTerms, Progress

# Names of the trained arrays besides the adapters; everything else is frozen.
TRAINED = ("tokenizer.blocks.", "tokenizer.synthesis.", "tokenizer.quantizer.",
           "tokenizer.null_text", "tokenizer.mask_value", "tokenizer.text_statistics.",
           "alignment.", "drift.")  # fmt: skip


_DROPOUT, _HIDING = 3, 4  # Apart from the keys that a split of three gives.
_NO_NEGATIVES = (
    "the contrastive text term has no negatives; give more clips, or set "
    "config.loss.settings.text_form=kl or config.loss.weights.text_codebook=0"
)
PRESETS_OF_WEIGHTS = ("", "paper")
PRESETS_OF_FORMULAS = ("", "paper")


class TokenizerSystem(nnx.Module):
    """Tokenizer, alignment with the language model, and the frozen networks of the losses."""

    def __init__(
        self,
        tokenizer: PyraTok,
        alignment: Alignment,
        text: TextEncoder,
        lpips: nnx.Module | None,
        dino: Dino | None = None,
        drift: LatentProjection | None = None,
        largest_side: int = 0,
    ):
        self.tokenizer = tokenizer
        self.alignment = alignment
        self.text = text
        self.lpips = nnx.data(lpips)
        self.dino = nnx.data(dino)
        self.drift = nnx.data(drift)
        self.largest_side = largest_side

    def look(self, images: Float[Array, "n h w 3"]) -> DinoFeatures:
        """DINO features of images in [-1, 1] of any size."""
        assert self.dino is not None
        dino = partitioning.with_replicated_kernels(self.dino)
        return dino(fit_sides(images, dino.config.patch, self.largest_side))


def is_trainable(name: str, variable: nnx.Variable) -> bool:
    """Adapters, levels, synthesis, learned embeddings and the alignment module."""
    return isinstance(variable, LoRAParam) or name.startswith(TRAINED)


def tokenizer_config(config: ConfigDict, vae: VideoVAEConfig, text_width: int) -> PyraTokConfig:
    """Sizes of the tokenizer that a training config asks for, around a VAE and a text width."""
    values = config.model.tokenizer.to_dict()
    if isinstance(values["grids"], str):
        _preset_levels(values["grids"])
        try:
            values["grids"] = vae.preset_grids(values["grids"])
        except ValueError as error:
            raise UserError(f"config.model.tokenizer.grids: {error}") from error
    if not values["grids"]:
        raise UserError("config.model.tokenizer.grids is empty: at least one level is needed")
    try:
        values["inputs"] = level_inputs(values["inputs"], len(values["grids"]))
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model.tokenizer.inputs: {error}") from error
    return PyraTokConfig(vae=vae, text_width=text_width, **values)


def _preset_levels(name: str) -> int:
    """Levels of a preset, for which the VAE need not be known.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise UserError(
            f"config.model.tokenizer.grids is {name!r}, expected one of {', '.join(PRESETS)}"
        )
    return len(PRESETS[name])


def _levels(config: ConfigDict) -> int:
    """How many levels the config's tokenizer has.

    Raises:
        UserError: as `_preset_levels`.
    """
    grids = config.model.tokenizer.grids
    return _preset_levels(grids) if isinstance(grids, str) else len(grids)


def build_system(
    config: ConfigDict,
    sizes: VideoVAEConfig,
    language_model: LanguageModel,
    *,
    rngs: nnx.Rngs,
    vae: VideoVAE | None = None,
    lpips: nnx.Module | None = None,
    dino: Dino | None = None,
) -> TokenizerSystem:
    """The modules of a training.

    Without `vae` the VAE has `sizes` and random weights. The projection of the drift from DINO
    exists only where that term has a weight.
    """
    width = language_model.config.width
    tokenizer = PyraTok(
        tokenizer_config(config, sizes, width),
        rngs=rngs,
        vae=vae,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )
    alignment = Alignment(**alignment_arguments(config, width), rngs=rngs)
    drift = None
    if dino is not None and TokenizerLoss(config).uses("drift_dinov3"):
        drift = LatentProjection(
            sizes.z_dim, dino.config.width, rngs=rngs, hidden=config.vision.projection
        )
    return TokenizerSystem(
        tokenizer,
        alignment,
        TextEncoder(language_model),
        lpips,
        dino,
        drift,
        largest_side=config.vision.largest_side,
    )


def alignment_arguments(config: ConfigDict, language_width: int) -> dict[str, Json]:
    """Arguments of `Alignment`, kept beside the checkpoints."""
    return {
        "bits": config.model.tokenizer.bits,
        "levels": _levels(config),
        "language_width": language_width,
        "head": config.model.head,
        "text_hidden": config.model.text_hidden,
        "text_neighbours": config.model.text_neighbours,
        "pooled_text": config.model.pooled_text,
        "grid_places": config.model.grid_places,
    }


def _check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{key} is {value!r}, expected one of {', '.join(choices)}")


class TokenizerLoss:
    """The whole objective (see `losses.objective`) of one batch, masking included."""

    def __init__(self, config: ConfigDict):
        values = config.loss.to_dict()
        self.weights = LossWeights(**values["weights"])
        _check_choice("config.loss.preset", config.loss.preset, PRESETS_OF_WEIGHTS)
        if config.loss.preset == "paper":
            self.weights = self.weights.paper()
        try:
            self.settings = LossSettings(
                vocabulary=config.model.tokenizer.vocabulary, **values["settings"]
            )
        except ValueError as error:
            raise UserError(f"config.loss.settings.{error}") from error
        if config.loss.preset == "paper":
            # Eq. 2 has no factors by level either.
            self.settings = dataclasses.replace(self.settings, text_levels=(1.0,))
        factors, levels = self.settings.text_levels, _levels(config)
        if len(factors) > levels:
            raise UserError(
                f"config.loss.settings.text_levels {factors}: the tokenizer has {levels} levels"
            )
        _check_choice("config.loss.formulas", config.loss.formulas, PRESETS_OF_FORMULAS)
        if config.loss.formulas == "paper":
            self.settings = self.settings.paper()
        self.token_budget = config.loss.token_budget
        self.targets, self.region = config.loss.targets, config.loss.region
        self.hidden_captions = config.loss.hidden_captions
        if not 0.0 <= self.hidden_captions <= 1.0:
            raise UserError(
                f"config.loss.hidden_captions is {self.hidden_captions}, expected a share: 0 to 1"
            )
        if self.targets == "straight_through" and config.model.head == "softmax":
            raise UserError(
                "config.loss.targets straight_through needs config.model.head=lookup_free; the "
                "head softmax reads ids: set config.loss.targets=fixed"
            )
        self._check_negatives(config)
        self.language_layers = config.language.layers or None
        self.masking = MaskingConfig(**config.masking.to_dict())

    @property
    def contrasts(self) -> bool:
        """Whether clips of a (micro)batch are told apart by their captions."""
        return self.settings.text_form == "contrastive" and self.uses("text_codebook")

    def _check_negatives(self, config: ConfigDict) -> None:
        """Refuse a contrastive term that has nothing to tell apart.

        Raises:
            UserError: (micro)batches of one clip.
        """
        try:
            buckets = parse_buckets(config.data.buckets)
        except UserError as error:
            raise UserError(f"config.data.buckets: {error}") from error
        alone = [bucket.name for bucket in buckets if bucket.clips == 1]
        if self.contrasts and alone:
            raise UserError(
                f"config.data.buckets: {alone[0]}*1 has one clip in a batch, and so {_NO_NEGATIVES}"
            )
        if self.contrasts and config.batch_size // max(config.accumulate, 1) < 2:
            raise UserError(
                f"config.batch_size: {config.batch_size} clips in {config.accumulate} parts have "
                f"one clip in a part, and so {_NO_NEGATIVES}"
            )

    def uses(self, term: str) -> bool:
        """Whether a term has a weight that is not 0."""
        return self.weights.effective()[term] != 0

    @property
    def uses_dino(self) -> bool:
        """Whether a term compares DINO features."""
        return self.uses("drift_dinov3") or self.uses("retention")

    def __call__(
        self, system: TokenizerSystem, batch: DeviceBatch, key: PRNGKeyArray, progress: Progress
    ) -> LossAndTerms:
        """Total and terms; the encoder sees the masked clip, the target is the clean one."""
        mask_key, crop_key, frames_key = jax.random.split(key, 3)
        video = to_model_range(batch["video"])
        if self.contrasts and len(video) < 2:  # How a mesh cuts batches is not known before.
            raise UserError(f"a part of a batch has one clip, and so {_NO_NEGATIVES}")
        text, cache = self._read(system, batch)
        tokenizer = system.tokenizer
        masked = mask_video(video, tokenizer.mask_value[...], mask_key, progress, self.masking)
        shown = text
        if self.hidden_captions:
            hide_key = jax.random.fold_in(key, _HIDING)
            shown = hide_captions(text, self.hidden_captions, hide_key)
        output = tokenizer.encode(masked, shown, jax.random.fold_in(key, _DROPOUT))
        rebuilt = tokenizer.decode(output.latent)
        extra: dict[str, Array] = {}
        predicted, captions = None, tokenizer.captions(text)
        if self.weights.autoregressive:
            codes = tuple(level.q for level in output.levels)
            predicted, extra = autoregressive_loss(
                system.alignment,
                system.text.language_model,
                codes,
                cache,
                self.token_budget or None,
                crop_key,
                layers=self.language_layers,
                targets=self.targets,
                region=self.region,
                pooled=captions.told,
            )
        total, terms = objective(
            self.weights,
            video,
            rebuilt,
            output,
            settings=self.settings,
            quantizer=tokenizer.quantizer,
            text=captions,
            shown=jnp.any(shown.mask, axis=1),
            embed=system.alignment.text_embed,
            temperature=system.alignment.temperature,
            lpips=partitioning.with_replicated_kernels(system.lpips) if system.lpips else None,
            autoregressive=predicted,
            frozen=self._frozen_posterior(tokenizer, masked),
            dino=system.look if self.uses_dino else None,
            projection=system.drift,
            masked=masked,
            key=frames_key,
        )
        if tokenizer.text_statistics is not None:
            total += tokenizer.text_statistics.tracking(text)
        error = jnp.mean(jnp.square(jnp.clip(rebuilt, -1.0, 1.0) - video)) / 4
        terms["psnr"] = -10.0 * jnp.log10(jnp.maximum(error, 1e-10))
        terms |= usage_metrics([level.q for level in output.levels], self.settings.vocabulary)
        return total, terms | {f"autoregressive/{name}": value for name, value in extra.items()}

    def _read(
        self, system: TokenizerSystem, batch: Mapping[str, Array]
    ) -> tuple[TextCondition, Text]:
        """Text embeddings, and what the autoregressive pass continues from: ids or a cache."""
        ids, mask = batch["text_ids"], batch["text_mask"]
        if "text_embeddings" in batch:
            stored = TextCondition(batch["text_embeddings"], mask)
            # Only the autoregressive pass still needs the model.
            return stored, (ids, mask)
        with jax.named_scope("language_model"):
            text, cache = system.text.read(ids, mask)
        return text._replace(embeddings=text.embeddings.astype(jnp.float32)), cache

    def _frozen_posterior(self, tokenizer: PyraTok, masked: Array) -> Posterior | None:
        if not self.uses("drift_vae"):
            return None
        with jax.named_scope("frozen"):
            encoded = video_vae.encode(
                without_adapters(tokenizer.vae), jax.lax.stop_gradient(masked)
            )
        return Posterior(*jax.lax.stop_gradient((encoded.mean, encoded.logvar)))
