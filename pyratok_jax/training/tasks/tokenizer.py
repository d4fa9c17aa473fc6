"""Training a tokenizer: frozen parts, data, loss, and data-dependent initialisation."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.hub import pinned
from pyratok_jax.checkpoints.partition import Partition, build_module
from pyratok_jax.checkpoints.pretrained import Language, load_backbone, load_language, load_vision
from pyratok_jax.data.caption_embeddings import StoredCaptions
from pyratok_jax.data.captions import CaptionTokenizer, check_captions
from pyratok_jax.data.padding import ClipSizes
from pyratok_jax.data.pipeline import ClipLoader, make_loader
from pyratok_jax.errors import UserError
from pyratok_jax.io.progress import PlainConsole, track
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.losses.autoregressive import clip_nats, make_prompts
from pyratok_jax.losses.text import unit
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.pyratok.quantizers.final_latent import square_root
from pyratok_jax.models.video_vae import build_vae
from pyratok_jax.tokenizer import Tokenizer, to_model_range, to_pixels, write_description
from pyratok_jax.tokenizer.clips import tokenizer_sizes
from pyratok_jax.training.init.calibration import CalibrationBatch, metric_of, refine
from pyratok_jax.training.loop.contracts import CaptionedClips, ShareOf
from pyratok_jax.training.system import (
    TokenizerLoss,
    TokenizerSystem,
    alignment_arguments,
    build_system,
    is_trainable,
    tokenizer_config,
)
from pyratok_jax.training.tasks.clip_batches import ClipBatches, pipeline_batches


class TokenizerTask:
    """The `contracts.Task` of a tokenizer; also the tasks of `evaluators`."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.backbone = load_backbone(config.model.backbone)
        self.language = load_language(
            config.language.spec, remat=config.language.remat, bits=config.language.bits
        )
        self.captions = CaptionTokenizer(self.language.tokenizer, config.language.length)
        self.stored = _stored_captions(config, self.language) if config.language.stored else None
        self.loss = TokenizerLoss(config)
        self.system = self._build()

    def _build(self) -> TokenizerSystem:
        config, sizes = self.config, self.backbone.config
        vae = build_module(
            lambda: build_vae(
                sizes, rngs=nnx.Rngs(0), dtype=jnp.dtype(config.dtype), remat=config.remat
            ),
            self.backbone.arrays,
        )
        lpips = None
        if self.loss.uses("lpips"):
            from pyratok_jax.checkpoints.foreign.lpips import load_lpips

            lpips = load_lpips("vgg")
        dino = load_vision(config.vision.spec) if self.loss.uses_dino else None
        return build_system(
            config,
            sizes,
            self.language.model,
            rngs=nnx.Rngs(config.seed),
            vae=vae,
            lpips=lpips,
            dino=dino,
        )

    def is_trainable(self, name: str, variable: nnx.Variable) -> bool:
        """See `system.is_trainable`."""
        return is_trainable(name, variable)

    def make_loader(self, share_of: ShareOf) -> ClipBatches:
        """The training stream of this process."""
        names = ("video", "text_ids", "text_mask", "text_embeddings")
        clips = self._clips(self.config.data.buckets, share_of)
        if self.loss.uses("text") or self.loss.uses("text_codebook"):
            check_captions(clips.some_captions())
        return pipeline_batches(clips, names, self.config.batch_size)

    def _clips(self, buckets: Sequence[str], share_of: ShareOf | None = None) -> ClipLoader:
        return make_loader(
            self.config.data.to_dict() | {"buckets": tuple(buckets)},
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            tokenize=self.captions,
            embed=self.stored,
            share_of=share_of,
        )

    @property
    def clip_sizes(self) -> ClipSizes:
        """Those of the tokenizer."""
        return tokenizer_sizes(self.system.tokenizer.config)

    def reconstruct(
        self, system: TokenizerSystem, clips: CaptionedClips
    ) -> UInt8[Array, "b t h w 3"]:
        """Padded clips decoded from their token ids (from the latent, for a model without ids)."""
        text = system.text(clips.text_ids, clips.text_mask)
        text = text._replace(embeddings=text.embeddings.astype(jnp.float32))
        tokenizer, frames = system.tokenizer, to_model_range(clips.video)
        if not tokenizer.quantizer.makes_tokens:
            return to_pixels(tokenizer.decode(tokenizer.encode(frames, text).latent))
        return to_pixels(tokenizer.detokenize(tokenizer.tokenize(frames, text)))

    @property
    def predicts_codes(self) -> bool:
        """Whether the autoregressive loss has a weight."""
        return self.loss.uses("autoregressive") and self.system.tokenizer.quantizer.makes_tokens

    def caption_nats(
        self, system: TokenizerSystem, clips: CaptionedClips, others: CaptionedClips
    ) -> dict[str, Float[Array, "b"]]:
        """Nats per code by caption (`clip_nats`), of codes that were made without a caption."""
        levels = system.tokenizer.encode(to_model_range(clips.video)).levels
        own, other = (
            make_prompts(system.tokenizer, system.text, x.text_ids, x.text_mask)
            for x in (clips, others)
        )
        return clip_nats(
            system.alignment,
            system.text.language_model,
            tuple(level.q for level in levels),
            own,
            other,
            self.loss.token_budget or None,
            layers=self.loss.language_layers,
        )

    def video_features(
        self, system: TokenizerSystem, video: UInt8[Array, "b t h w 3"]
    ) -> Float[Array, "b d"]:
        """The mean over levels of each level's unit mean code, in the text space; no captions."""
        levels = system.tokenizer.encode(to_model_range(video)).levels
        means = [
            unit(system.alignment.text_embed(level.q, number).astype(jnp.float32).mean((1, 2, 3)))
            for number, level in enumerate(levels)
        ]
        return unit(jnp.mean(jnp.stack(means), axis=0))

    def text_features(
        self, system: TokenizerSystem, ids: Int[Array, "n l"], mask: Bool[Array, "n l"]
    ) -> Float[Array, "n d"]:
        """Texts in the text space, where codes are compared with them, at unit length."""
        text = system.text(ids, mask)
        text = text._replace(embeddings=text.embeddings.astype(jnp.float32))
        return unit(system.tokenizer.captions(text).pooled)

    def wrap(self, system: TokenizerSystem) -> Tokenizer:
        """The tokenizer of a system, to be measured without a checkpoint."""
        return Tokenizer(
            system.tokenizer,
            text=system.text,
            captions=self.captions,
            alignment=system.alignment,
        )

    def calibrate(self, partition: Partition, kept: int = 0) -> list[float]:
        """Data-dependent initialisation of the levels, in the partition's arrays.

        The quantiser is fitted to the latents of training clips (`Quantizer.fit`), then all levels
        are optimised jointly (`calibration.refine`). Both weigh errors by the decoder's pull-back
        metric (`calibration.decoder_metric`).

        Args:
            partition: of the model; its arrays are replaced.
            kept: first levels whose codes stay as they are, such as those of another training.

        Returns:
            share of the latent's energy that is left after each fitted level; empty where
            `config.calibration.batches` is 0.
        """
        settings, seed = self.config.calibration, self.config.seed
        if not settings.batches:
            return []
        system = partition.merge(partition.trainable, partition.frozen)
        tokenizer = system.tokenizer
        encoded = self._encode(tokenizer, settings)
        latents = [batch.latent for batch in encoded]
        root = square_root(metric_of(tokenizer, latents[0], seed))
        left = tokenizer.quantizer.fit(
            latents,
            stages=[batch.stages for batch in encoded],
            root=root,
            seed=seed,
            steps=settings.steps,
            kept=kept,
            text=tokenizer.condition(None, 1),
        )
        if any(left):
            refine(
                tokenizer,
                encoded,
                root,
                steps=settings.refine_steps,
                learning_rate=settings.learning_rate,
                seed=seed,
                progress=lambda steps: _shown(steps, settings.refine_steps, "levels, together"),
                kept=kept,
            )
        partition.trainable.update(Partition(system, is_trainable).trainable)
        return left

    def _encode(self, tokenizer: PyraTok, settings: ConfigDict) -> list[CalibrationBatch]:
        """Latents and stage features of training clips; the encoder's adapters are still zero."""
        graph, state = nnx.split(tokenizer)

        @jax.jit
        def encode(state: nnx.State, video: Array) -> tuple[Array, tuple[Array, ...]]:
            vae = nnx.merge(graph, state).vae
            posterior = vae.posterior(to_model_range(video))
            return vae.normalize(posterior.mean.astype(jnp.float32)), tuple(posterior.stages)

        loader = self._clips(settings.buckets or self.config.data.buckets)
        numbers = _shown(iter(range(settings.batches)), settings.batches, "features of clips")
        batches = [encode(state, jnp.asarray(next(loader)["video"])) for _ in numbers]
        loader.close()
        return [
            CalibrationBatch(np.asarray(latent), tuple(np.asarray(stage) for stage in stages))
            for latent, stages in batches
        ]

    def describe(self, workdir: AnyPath) -> None:
        """Write `tokenizer.json`, which `load_tokenizer` reads beside the checkpoints."""
        width = self.language.model.config.width
        write_description(
            workdir,
            tokenizer_config(self.config, self.backbone.config, width),
            backbone={"spec": pinned(self.config.model.backbone), "sha256": self.backbone.sha256},
            language_model={
                "spec": pinned(self.config.language.spec),
                "sha256": self.language.sha256,
                "length": self.config.language.length,
                "bits": self.config.language.bits,
            },
            alignment=alignment_arguments(self.config, width),
            dtype=self.config.dtype,
        )


def _shown(numbers: Iterator[int], total: int, what: str) -> Iterator[int]:
    """The numbers, with a progress bar on process 0."""
    if jax.process_index():
        return numbers
    return iter(track(numbers, f"calibrating: {what}", PlainConsole(), total=total))


def _stored_captions(config: ConfigDict, language: Language) -> StoredCaptions:
    """Stored embeddings, which must be of this model, as it is quantised, and length.

    Raises:
        UserError: no such folder, or made with another model, width, length or number of bits.
    """
    said = config.language
    stored = StoredCaptions(said.stored)
    made = (stored.model, stored.width, stored.length, stored.bits)
    wanted = (language.sha256, language.model.config.width, said.length, said.bits)
    if made != wanted:
        bits = f" --bits {said.bits}" if said.bits else ""
        raise UserError(
            f"config.language.stored {said.stored} holds embeddings of model {made[0][:16]}, width "
            f"{made[1]}, {made[2]} tokens, {made[3]} bits; this training has {wanted[0][:16]}, "
            f"{wanted[1]}, {wanted[2]}, {wanted[3]}: make them again with embed_captions "
            f"--language {said.spec} --length {said.length}{bits}"
        )
    return stored
