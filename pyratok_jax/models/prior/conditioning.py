"""The prefix of a prior: what is generated, as a few tokens that all others see."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pyratok_jax.models.language.layers import Linear, RMSNorm
from pyratok_jax.models.prior.config import PriorConfig
from pyratok_jax.models.text_statistics import TextStatistics, plain_captions
from pyratok_jax.nn.text_attention import TextCondition


class Prefix(NamedTuple):
    """What a clip is conditioned on.

    Attributes:
        x: tokens before the clip.
        valid: which of them each row has; every row has at least one.
        offset: added to the input of every token of the clip.
    """

    x: Float[Array, "b l d"]
    valid: Bool[Array, "b l"]
    offset: Float[Array, "b d"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("text", "classes"), meta_fields=("rows",)
)
@dataclasses.dataclass(frozen=True)
class Condition:
    """What a batch is conditioned on; a pytree whose number of rows is static under jit.

    Attributes:
        rows: of the batch.
        text: embedded captions; a row without any real token has none. None: no captions.
        classes: number of each row's class, -1 for none; None: no classes.
    """

    rows: int
    text: TextCondition | None = None
    classes: Int[Array, " b"] | None = None


class Conditioner(nnx.Module):
    """Makes the prefix: projected text states, the embedding of a class, or a learned start.

    Rows without caption or class get the learned null, which is also the unconditional state of
    guidance. Text states are standardised by running statistics of the training's captions:
    a few outlier features, the same in all sentences, would hide the others.
    """

    def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs):
        self.kind, width = config.condition, config.width
        normal = nnx.initializers.normal(1.0)
        self.null = nnx.Param(normal(rngs.params(), (width,), jnp.float32))
        self.text_statistics: TextStatistics | None = nnx.data(None)
        if self.kind == "text":
            if config.standardised_text:
                self.text_statistics = TextStatistics(config.text_width)
            self.norm = RMSNorm(config.text_width, 1e-6, False)
            self.enter = Linear(config.text_width, width, bias=True, rngs=rngs)
            self.leave = Linear(width, width, bias=True, rngs=rngs)
        self.whole: Linear | None = nnx.data(None)
        if self.kind == "text" and config.pooled_text:
            self.whole = Linear(config.text_width, width, bias=True, rngs=rngs)
            # Zero: a prior starts as it does without, and no token is drowned in noise.
            self.whole.kernel[...] = jnp.zeros_like(self.whole.kernel[...])
        if self.kind == "classes":
            self.table = nnx.Param(normal(rngs.params(), (config.classes, width), jnp.float32))

    def __call__(self, condition: Condition) -> Prefix:
        """The prefix of each row."""
        null = self.null[...]
        offset = jnp.zeros((condition.rows, null.shape[0]))
        if self.kind == "text" and condition.text is not None:
            read = plain_captions if self.text_statistics is None else self.text_statistics.captions
            text = read(condition.text)
            x = self.enter(self.norm(text.words))
            x = self.leave(jax.nn.silu(x))
            absent = ~text.mask.any(axis=1, keepdims=True)
            first = jnp.arange(x.shape[1]) == 0
            if self.whole is not None:
                offset = jnp.where(absent, 0.0, self.whole(text.pooled))
            valid = text.mask | (absent & first[None])
            return Prefix(jnp.where(absent[..., None], null, x), valid, offset)
        if self.kind == "classes" and condition.classes is not None:
            known = (condition.classes >= 0)[:, None]
            x = self.table[...][jnp.maximum(condition.classes, 0)]
            valid = jnp.ones((condition.rows, 1), bool)
            return Prefix(jnp.where(known, x, null)[:, None], valid, offset)
        x = jnp.broadcast_to(null, (condition.rows, 1, null.shape[0]))
        return Prefix(x, jnp.ones(x.shape[:2], bool), offset)

    def tracking(self, condition: Condition) -> Float[Array, ""]:
        """Zero, with the gradient that moves the text statistics (`TextStatistics.tracking`)."""
        if self.text_statistics is None or condition.text is None:
            return jnp.zeros(())
        return self.text_statistics.tracking(condition.text)
