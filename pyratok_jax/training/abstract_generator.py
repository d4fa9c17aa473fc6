"""A prior's training in shapes alone, as `abstract` has that of a tokenizer."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.data.buckets import Bucket
from pyratok_jax.errors import UserError
from pyratok_jax.losses.settings import PriorObjective
from pyratok_jax.models.language.model import LanguageModel, TextEncoder
from pyratok_jax.models.prior.layout import Layout
from pyratok_jax.models.prior.model import Prior
from pyratok_jax.models.pyratok.quantizers.base import build_quantizer
from pyratok_jax.models.sizes import LANGUAGE_MODELS, VAES
from pyratok_jax.nn.grids import grid_shape
from pyratok_jax.training.abstract import size_of
from pyratok_jax.training.generator_system import (
    GeneratorSystem,
    batch_loss,
    is_trainable,
    layout_of,
    prior_sizes,
)
from pyratok_jax.training.optimizer import make_optimizer
from pyratok_jax.training.step import Step, TrainState, initial_state, make_train_step
from pyratok_jax.training.system import tokenizer_config


class AbstractGenerator(NamedTuple):
    """Shapes of a prior's training.

    Attributes:
        system: the abstract system itself; its quantiser is there for the order "blocks" alone.
        length: tokens of a caption.
        state: parameters, optimizer and counters.
        step: to be traced or compiled.
        frozen: arrays that training does not change, by name.
        partition: of the system.
    """

    system: GeneratorSystem
    length: int
    state: TrainState
    step: Step
    frozen: dict[str, jax.ShapeDtypeStruct]
    partition: Partition[GeneratorSystem]

    def layout(self, bucket: Bucket) -> Layout:
        """The tokens of a clip.

        Raises:
            ValueError: the clip does not divide into the grids.
        """
        sizes = self.system.prior.config
        size = bucket.frames, bucket.height, bucket.width
        return layout_of([grid_shape(stride, *size) for stride in sizes.strides], sizes)


def abstract_generator(config: ConfigDict, tokenizer: ConfigDict) -> AbstractGenerator:
    """The shapes of a prior over the tokens of a tokenizer whose frozen parts have published sizes.

    Args:
        config: see `config.generator_training_config`.
        tokenizer: config of the tokenizer's training, in place of its working folder.

    Raises:
        UserError: an impossible setting, or a size that is not known.
    """
    vae = size_of(VAES, tokenizer.model.vae, "model.vae")
    language = size_of(LANGUAGE_MODELS, tokenizer.language.size, "language.size")
    dtype = jnp.dtype(config.dtype)
    made = tokenizer_config(tokenizer, vae, language.width)
    sizes = prior_sizes(config, made, language.width)
    try:
        objective = PriorObjective(**config.objective)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.objective: {error}") from error

    def make() -> GeneratorSystem:
        rngs = nnx.Rngs(0)
        text, quantizer = None, None
        if sizes.condition == "text" and not config.conditioning.stored:
            text = TextEncoder(LanguageModel(language, rngs=rngs, dtype=dtype, param_dtype=dtype))
        if sizes.order == "blocks":
            quantizer = build_quantizer(made, rngs=rngs, dtype=dtype)
        return GeneratorSystem(Prior(sizes, rngs=rngs, dtype=dtype), text, quantizer)

    system = nnx.eval_shape(make)
    partition = Partition(system, is_trainable)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = jax.eval_shape(
        lambda params: initial_state(params, optimizer, config.ema_decay), partition.trainable
    )
    step = make_train_step(
        lambda params, frozen, batch, key, progress: batch_loss(
            partition.merge(params, frozen), batch, key, objective
        ),
        optimizer,
        steps=config.steps,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
        fused_attention=config.fused_attention,
    )
    frozen = cast(dict[str, jax.ShapeDtypeStruct], partition.frozen)
    length = config.conditioning.length or tokenizer.language.length
    return AbstractGenerator(system, length, state, step, frozen, partition)


def abstract_tokens(
    training: AbstractGenerator, config: ConfigDict, bucket: Bucket
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch of tokens of clips of one bucket, as `TokenBatches` gives it."""
    rows, kind = bucket.clips or config.batch_size, config.conditioning.kind
    batch = {
        f"level_{number}": jax.ShapeDtypeStruct((rows, *grid), jnp.int32)
        for number, grid in enumerate(training.layout(bucket).grids, start=1)
    }
    if kind == "text":
        words = (rows, training.length)
        width = training.system.prior.config.text_width
        if config.conditioning.stored:
            batch["text_embeddings"] = jax.ShapeDtypeStruct((*words, width), jnp.float32)
        else:
            batch["text_ids"] = jax.ShapeDtypeStruct(words, jnp.int32)
        batch["text_mask"] = jax.ShapeDtypeStruct((rows, training.length), jnp.bool_)
    if kind == "classes":
        batch["classes"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
    return batch
