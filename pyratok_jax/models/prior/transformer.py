"""The transformer of a prior: RMSNorm, QK-norm, grouped-query attention, SwiGLU, no biases.

Llama's layout (Touvron et al. 2023) with the query and key norms of Dehghani et al. 2023. Layers
are stacked on a leading axis and run by one scan.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pyratok_jax.models.language.attention import KEPT, Rotation, rotate
from pyratok_jax.models.language.layers import Linear, RMSNorm
from pyratok_jax.models.prior.attention import Segment, attend, attend_static, turn
from pyratok_jax.models.prior.config import PriorConfig
from pyratok_jax.models.prior.layout import Visibility, visible
from pyratok_jax.nn.partitioning import constrain_batch_sharding
from pyratok_jax.nn.trace import checkpoint

_EPS = 1e-6
KeyValues = tuple[Float[Array, "... kv e"], Float[Array, "... kv e"]]  # Of one layer or of all.


class Memory(NamedTuple):
    """The KV cache: keys and values of tokens that later ones see.

    Attributes:
        keys, values: stacked over the layers; keys are rotated.
        seen: of every slot; free slots are `NEVER` written.
        valid: slots that hold a token in each row.
        used: slots taken.
        offset: added to the input of every new token (`Prefix.offset`).
    """

    keys: Float[Array, "layers b s kv d"]
    values: Float[Array, "layers b s kv d"]
    seen: Visibility
    valid: Bool[Array, "b s"]
    used: Int[Array, ""]
    offset: Float[Array, "b d"]


def empty_memory(config: PriorConfig, rows: int, slots: int, dtype: DTypeLike) -> Memory:
    """A memory without tokens."""
    shape = (config.layers, rows, slots, config.kv_heads, config.head_dim)
    nothing = Visibility(*(jnp.zeros((slots,), jnp.int32) for _ in range(3)))
    return Memory(
        jnp.zeros(shape, dtype),
        jnp.zeros(shape, dtype),
        nothing,
        jnp.zeros((rows, slots), bool),
        jnp.zeros((), jnp.int32),
        jnp.zeros((rows, config.width), dtype),
    )


def remember(
    memory: Memory,
    new: KeyValues,
    seen: Visibility,
    valid: Bool[Array, "b t"],
    at: Int[Array, ""] | int | None = None,
) -> Memory:
    """The memory with tokens added.

    Args:
        memory: with room for them.
        new: their keys and values.
        seen: of them.
        valid: tokens that each row has.
        at: first slot, whatever it holds; None: the next free one.
    """
    at, count = memory.used if at is None else jnp.asarray(at), valid.shape[1]
    keys, values = (
        jax.lax.dynamic_update_slice(old, x.astype(old.dtype), (0, 0, at, 0, 0))
        for old, x in zip((memory.keys, memory.values), new, strict=True)
    )
    columns = (
        jax.lax.dynamic_update_slice(old, jnp.asarray(x, jnp.int32), (at,))
        for old, x in zip(memory.seen, seen, strict=True)
    )
    mask = jax.lax.dynamic_update_slice(memory.valid, valid, (0, at))
    used = jnp.maximum(memory.used, at + count)
    return Memory(keys, values, Visibility(*columns), mask, used, memory.offset)


class Layer(nnx.Module):
    """Attention and gated MLP, each with a norm before it and a residual."""

    def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs):
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        width, shared = config.width, config.kv_heads * config.head_dim
        self.attention_norm = RMSNorm(width, _EPS, False)
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, shared, rngs=rngs)
        self.value = Linear(width, shared, rngs=rngs)
        self.query_norm = RMSNorm(config.head_dim, _EPS, False)
        self.key_norm = RMSNorm(config.head_dim, _EPS, False)
        self.out = Linear(width, width, rngs=rngs)
        self.mlp_norm = RMSNorm(width, _EPS, False)
        self.gate = Linear(width, config.mlp_width, rngs=rngs)
        self.up = Linear(width, config.mlp_width, rngs=rngs)
        self.down = Linear(config.mlp_width, width, rngs=rngs)
        # A deep residual stream keeps its scale at initialisation (GPT-2).
        for last in (self.out, self.down):
            last.kernel[...] = last.kernel[...] * (2 * config.layers) ** -0.5

    def project(self, x: Float[Array, "b t d"], rotation: Rotation) -> tuple[Array, Array, Array]:
        """Rotated queries and keys, and values, as heads."""
        b, t, _ = x.shape
        y = self.attention_norm(x)
        query = self.query_norm(self.query(y).reshape(b, t, self.heads, self.head_dim))
        key = self.key_norm(self.key(y).reshape(b, t, self.kv_heads, self.head_dim))
        value = self.value(y).reshape(b, t, self.kv_heads, self.head_dim)
        return rotate(query, rotation), rotate(key, rotation), value

    def finish(self, x: Float[Array, "b t d"], pooled: Float[Array, "b t h e"]) -> Array:
        """The residual updates of the attended values and of the MLP."""
        x = x + self.out(pooled.reshape(*x.shape[:2], -1))
        y = self.mlp_norm(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))


class Transformer(nnx.Module):
    """The stack of layers and the final norm."""

    def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs):
        self.config = config

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> Layer:
            return Layer(config, rngs=rngs)

        self.layers = stack(rngs)
        self.norm = RMSNorm(config.width, _EPS, False)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        places: Float[np.ndarray | Array, "#b t 4"],
        seen: Visibility,
        valid: Bool[Array, "b t"],
    ) -> Float[Array, "b t d"]:
        """Hidden states of a whole sequence, under a static visibility.

        Args:
            x: input embeddings, offsets added.
            places: positions (level, t, h, w).
            seen: NumPy arrays; see `Visibility`.
            valid: tokens that are there; others are seen by none.
        """
        rotation = turn(jnp.asarray(places), self.config.head_dim, self.config.theta)
        window = self.config.window

        def attended(layer: Layer, x: Array, _: Any) -> tuple[Array, None]:
            query, key, value = layer.project(x, rotation)
            with jax.named_scope("prior_attention"):
                pooled = attend_static(query, key, value, seen, valid, window)
            return layer.finish(x, pooled), None

        return self._scan(attended, x, None)[0]

    def extend(
        self,
        x: Float[Array, "b t d"],
        places: Float[np.ndarray | Array, "#b t 4"],
        seen: Visibility,
        valid: Bool[Array, "b t"],
        memory: Memory,
    ) -> tuple[Float[Array, "b t d"], KeyValues]:
        """Hidden states of new tokens behind a memory, and their keys and values.

        The memory is not changed; `remember` adds the tokens to it.
        """
        rotation = turn(jnp.asarray(places), self.config.head_dim, self.config.theta)
        window = self.config.window
        past = jnp.asarray(visible(seen, memory.seen, window))[None] & memory.valid[:, None]
        own = jnp.asarray(visible(seen, seen, window))[None] & valid[:, None]

        def attended(layer: Layer, x: Array, cached: KeyValues) -> tuple[Array, KeyValues]:
            query, key, value = layer.project(x, rotation)
            old = Segment(cached[0].astype(x.dtype), cached[1].astype(x.dtype), past)
            with jax.named_scope("prior_attention"):
                pooled = attend(query, (old, Segment(key, value, own)))
            return layer.finish(x, pooled), (key, value)

        x = x + memory.offset[:, None].astype(x.dtype)
        return self._scan(attended, x, (memory.keys, memory.values))

    def _scan(self, run: Any, x: Array, extra: Any) -> tuple[Array, Any]:
        graph, weights = nnx.split(self.layers)

        def body(x: Array, one: Any) -> tuple[Array, Any]:
            weights, extra = one
            return run(nnx.merge(graph, weights), constrain_batch_sharding(x), extra)

        if self.config.remat:
            # Attention is kept: it is narrow, and the costliest to compute again.
            kept = jax.checkpoint_policies.save_only_these_names(*KEPT)
            body = checkpoint(body, prevent_cse=False, policy=kept)
        with jax.named_scope("prior_layers"):
            x, found = jax.lax.scan(body, x, (weights, extra))
        return self.norm(x), found
