"""A training in shapes alone: every array and the step are abstract, nothing is allocated.

So full-size configs are checked, and compiled for a pod, on machines that could not hold them.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Partition
from pyratok_jax.data.buckets import Bucket, parse_buckets
from pyratok_jax.errors import UserError
from pyratok_jax.models.dino import Dino
from pyratok_jax.models.language.model import LanguageModel, quantize_model
from pyratok_jax.models.perceptual.lpips import LPIPS
from pyratok_jax.models.sizes import LANGUAGE_MODELS, VAES, VISION_MODELS
from pyratok_jax.training.optimizer import make_optimizer
from pyratok_jax.training.step import Step, TrainState, initial_state, make_train_step
from pyratok_jax.training.system import TokenizerLoss, TokenizerSystem, build_system, is_trainable

T = TypeVar("T")


class AbstractTraining(NamedTuple):
    """Shapes of a training.

    Attributes:
        state: parameters, optimizer and counters.
        frozen: arrays that training does not change, by name.
        step: to be traced or compiled.
        partition: of the abstract system.
    """

    state: TrainState
    frozen: dict[str, jax.ShapeDtypeStruct]
    step: Step
    partition: Partition[TokenizerSystem]


def abstract_training(config: ConfigDict) -> AbstractTraining:
    """The shapes of a config whose frozen parts are given by published sizes.

    Raises:
        UserError: a size that is not known.
    """
    vae = size_of(VAES, config.model.vae, "model.vae")
    language = size_of(LANGUAGE_MODELS, config.language.size, "language.size")
    loss = TokenizerLoss(config)
    dtype = jnp.dtype(config.dtype)

    def make() -> TokenizerSystem:
        rngs = nnx.Rngs(0)
        model = LanguageModel(
            language, rngs=rngs, dtype=dtype, param_dtype=dtype, remat=config.language.remat
        )
        if config.language.bits:
            quantize_model(model, config.language.bits)
        lpips = LPIPS("vgg", rngs=rngs, dtype=dtype) if loss.uses("lpips") else None
        dino = None
        if loss.uses_dino:
            sizes = size_of(VISION_MODELS, config.vision.size, "vision.size")
            dino = Dino(sizes, rngs=rngs, dtype=dtype)
        return build_system(config, vae, model, rngs=rngs, lpips=lpips, dino=dino)

    partition = Partition(nnx.eval_shape(make), is_trainable)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = jax.eval_shape(
        lambda params: initial_state(params, optimizer, config.ema_decay), partition.trainable
    )
    step = make_train_step(
        lambda params, frozen, *rest: loss(partition.merge(params, frozen), *rest),
        optimizer,
        steps=config.steps,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
        fused_attention=config.fused_attention,
    )
    # Those of an abstract module are shapes.
    frozen = cast(dict[str, jax.ShapeDtypeStruct], partition.frozen)
    return AbstractTraining(state, frozen, step, partition)


def size_of(known: Mapping[str, T], name: str, key: str) -> T:
    """The published size that `config.KEY` names.

    Raises:
        UserError: there is none of that name.
    """
    if name not in known:
        raise UserError(f"config.{key} is {name!r}, expected one of {', '.join(known)}")
    return known[name]


def abstract_batch(config: ConfigDict, bucket: Bucket) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch of one bucket."""
    rows, length = bucket.clips or config.batch_size, config.language.length
    shape = (rows, bucket.frames, bucket.height, bucket.width, 3)
    return {
        "video": jax.ShapeDtypeStruct(shape, jnp.uint8),
        "text_ids": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "text_mask": jax.ShapeDtypeStruct((rows, length), jnp.bool_),
    }


def largest_bucket(config: ConfigDict) -> Bucket:
    """The bucket with the most pixels."""
    return max(parse_buckets(config.data.buckets), key=lambda b: b.frames * b.height * b.width)


def count(arrays: Mapping[str, Array | jax.ShapeDtypeStruct]) -> int:
    """Number of values in a dictionary of arrays or shapes."""
    return sum(int(np.prod(x.shape)) for x in arrays.values())
