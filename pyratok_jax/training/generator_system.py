"""A prior in training: its modules, its sizes, and its loss."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.losses.prior import prior_loss
from pyratok_jax.losses.settings import PriorObjective
from pyratok_jax.models.language.model import TextEncoder
from pyratok_jax.models.prior.conditioning import Condition
from pyratok_jax.models.prior.config import PriorConfig
from pyratok_jax.models.prior.latents import LevelCodes
from pyratok_jax.models.prior.layout import Layout
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.lfq import ids_to_bits
from pyratok_jax.models.pyratok.quantizers.base import Quantizer
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.training.loop.contracts import DeviceBatch, LossAndTerms


class GeneratorSystem(nnx.Module):
    """The prior, and the frozen parts that its loss reads."""

    def __init__(self, prior: Prior, text: TextEncoder | None, quantizer: Quantizer | None):
        self.prior = prior
        self.text = nnx.data(text)
        self.quantizer = nnx.data(quantizer)

    def condition(self, batch: Mapping[str, Array], rows: int) -> Condition:
        """What the rows of a batch are conditioned on."""
        text: TextCondition | None = None
        if "text_embeddings" in batch:
            text = TextCondition(batch["text_embeddings"], batch["text_mask"])
        elif self.text is not None:
            with jax.named_scope("language_model"):
                text = self.text(batch["text_ids"], batch["text_mask"])
        return Condition(rows, text, batch.get("classes"))

    def synthesize(self, codes: LevelCodes) -> Array:
        """The latent of codes of all levels."""
        assert self.quantizer is not None
        return self.quantizer.synthesize(codes)


def is_trainable(name: str, variable: nnx.Variable) -> bool:
    """The prior alone."""
    return name.startswith("prior.")


def prior_sizes(config: ConfigDict, tokenizer: PyraTokConfig, text_width: int) -> PriorConfig:
    """Sizes of the prior that a training config asks for.

    Args:
        config: see `config.generator_training_config`.
        tokenizer: that made the tokens.
        text_width: of the text embeddings; of no meaning without text.

    Raises:
        UserError: impossible sizes.
    """
    chosen = config.conditioning
    try:
        return PriorConfig(
            strides=tokenizer.grids,
            bits=tokenizer.bits,
            latent_stride=tokenizer.latent_stride,
            latent_channels=tokenizer.vae.z_dim,
            condition=chosen.kind,
            text_width=text_width,
            classes=len(chosen.classes),
            remat=config.remat != "none",
            **{key: _plain(value) for key, value in config.model.items()},
        )
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error


def _plain(value: Json) -> Json:
    """A tuple where a config holds a list or a tuple of numbers."""
    return tuple(value) if isinstance(value, list | tuple) else value


def batch_loss(
    system: GeneratorSystem, batch: DeviceBatch, key: PRNGKeyArray, objective: PriorObjective
) -> LossAndTerms:
    """Loss and terms of a batch.

    Args:
        system: with the prior.
        batch: tokens `level_1`, ... (b, t, h, w), of flipped data `read_1`, ... of the same shapes,
            and what the captions became.
        key: of the step.
        objective: settings of the loss.
    """
    sizes = system.prior.config
    grids = [batch[f"level_{number + 1}"].shape[1:] for number in range(sizes.levels)]
    return prior_loss(
        system.prior,
        _codes(batch, "level", sizes),
        system.condition(batch, batch["level_1"].shape[0]),
        key,
        layout=layout_of(grids, sizes),
        objective=objective,
        synthesize=system.synthesize,
        read=_codes(batch, "read", sizes) if "read_1" in batch else None,
    )


def _codes(batch: DeviceBatch, name: str, sizes: PriorConfig) -> Float[Array, "b n bits"]:
    """The codes of all levels, one after another."""
    levels = [batch[f"{name}_{number + 1}"] for number in range(sizes.levels)]
    ids = jnp.concatenate([level.reshape(level.shape[0], -1) for level in levels], axis=1)
    return ids_to_bits(ids.astype(jnp.uint32), sizes.bits)


def layout_of(grids: list[tuple[int, ...]], sizes: PriorConfig) -> Layout:
    """The layout of levels with these grids."""
    found = tuple((int(t), int(h), int(w)) for t, h, w in grids)
    return Layout(found, sizes.strides, sizes.latent_stride)
