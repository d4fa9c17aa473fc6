"""Layers of the language models: linear maps, RMS norm, attention with a cache, gated MLP."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pyratok_jax.models.language.attention import KEPT, Rotation, attend, rotate
from pyratok_jax.models.language.config import LanguageConfig
from pyratok_jax.models.language.fused_attention import can_fuse, fused_attention
from pyratok_jax.models.language.kernels import QuantizedKernel, dequantize_kernel
from pyratok_jax.nn.partitioning import constrain_batch_sharding, constrain_token_sharding


class LayerContext(NamedTuple):
    """What every layer of one pass shares.

    Attributes:
        turn, local_turn: rotations of the full and of the sliding layers.
        mask, local_mask: True where a query attends to a key slot.
        offset: slot of the first query in the keys.
        causal: keys that are there, where `mask` is these and the order of tokens alone, and the
            new tokens are the last keys; else None.
    """

    turn: Rotation
    local_turn: Rotation
    mask: Bool[Array, "b 1 t s"]
    local_mask: Bool[Array, "b 1 t s"]
    offset: Array | int
    causal: Bool[Array, "b s"] | None = None


KeyValues = tuple[Float[Array, "b s kv size"], Float[Array, "b s kv size"]]


class Linear(nnx.Module):
    """x @ kernel + bias. The kernel is cast to the input's dtype when it is used.

    With a `scale` (and an `offset`) the kernel holds quantised values, see `kernels`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike = jnp.float32,
    ):
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), param_dtype))
        self.scale: nnx.Param | None = nnx.data(None)
        self.offset: nnx.Param | None = nnx.data(None)
        self.bias = nnx.Param(jnp.zeros((outputs,), param_dtype)) if bias else None

    def __call__(self, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
        """The mapped input, same dtype."""
        kernel = self.kernel[...]
        if self.scale is not None:
            offset = None if self.offset is None else self.offset[...]
            packed = QuantizedKernel(kernel, self.scale[...], offset)
            kernel = dequantize_kernel(packed, x.dtype)
        y = x @ kernel.astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * weight; computed in float32.

    Llama's form rounds to the input's dtype before the weight is applied; with `offset` (Gemma) the
    factor is 1 + weight and everything is rounded once at the end.
    """

    def __init__(
        self, width: int, eps: float, offset: bool, *, param_dtype: DTypeLike = jnp.float32
    ):
        self.eps, self.offset = eps, offset
        self.weight = nnx.Param((jnp.zeros if offset else jnp.ones)((width,), param_dtype))

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Normalised `x`, same dtype."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        if self.offset:
            return (y * (1.0 + self.weight[...].astype(jnp.float32))).astype(x.dtype)
        return y.astype(x.dtype) * self.weight[...].astype(x.dtype)


def _norm(config: LanguageConfig, width: int, wanted: bool, settings: dict) -> RMSNorm | None:
    if not wanted:
        return None
    dtype = settings.get("param_dtype", jnp.float32)
    return RMSNorm(width, config.norm_eps, config.norm_offset, param_dtype=dtype)


class Attention(nnx.Module):
    """Causal self-attention with shared key-value heads, over new tokens and cached ones."""

    def __init__(self, config: LanguageConfig, **settings):
        size, heads, shared = config.head_dim, config.heads, config.kv_heads
        self.scale = (config.query_scale or size) ** -0.5
        self.heads, self.kv_heads, self.head_dim = heads, shared, size
        bias = {"bias": config.qkv_bias, **settings}
        self.query = Linear(config.width, heads * size, **bias)
        self.key = Linear(config.width, shared * size, **bias)
        self.value = Linear(config.width, shared * size, **bias)
        self.out = Linear(heads * size, config.width, **settings)
        self.query_norm = _norm(config, size, config.qk_norm, settings)
        self.key_norm = _norm(config, size, config.qk_norm, settings)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        turn: Rotation,
        mask: Bool[Array, "b 1 t s"],
        cache: KeyValues | None,
        offset: Array | int,
        causal: Bool[Array, "b s"] | None,
    ) -> tuple[Float[Array, "b t d"], KeyValues]:
        """The attended update, and all keys and values (the cache with the new ones in place)."""
        b, t, _ = x.shape
        query = self.query(x).reshape(b, t, self.heads, self.head_dim)
        key = self.key(x).reshape(b, t, self.kv_heads, self.head_dim)
        value = self.value(x).reshape(b, t, self.kv_heads, self.head_dim)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, turn), rotate(key, turn)
        # In a sequence sharded over devices each has its own queries, and all keys and values.
        query, key, value = (
            constrain_token_sharding(query),
            constrain_batch_sharding(key),
            constrain_batch_sharding(value),
        )
        if cache is not None:
            place = (0, offset, 0, 0)
            key = jax.lax.dynamic_update_slice(cache[0], key.astype(cache[0].dtype), place)
            value = jax.lax.dynamic_update_slice(cache[1], value.astype(cache[1].dtype), place)
        used = query, key.astype(x.dtype), value.astype(x.dtype)
        if causal is not None and can_fuse(*used[:2]):
            s = key.shape[1]
            order = np.tri(t, s, s - t, dtype=bool)
            pooled = fused_attention(*used, order, causal, self.scale, name=KEPT[0])
        else:
            pooled = attend(*used, mask, self.scale)
        return self.out(pooled.reshape(b, t, -1)), (key, value)


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, config: LanguageConfig, **settings):
        self.activation = config.activation
        self.gate = Linear(config.width, config.mlp_width, **settings)
        self.up = Linear(config.width, config.mlp_width, **settings)
        self.down = Linear(config.mlp_width, config.width, **settings)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Same shape out."""
        gate = self.gate(x)
        active = jax.nn.silu(gate) if self.activation == "silu" else jax.nn.gelu(gate)
        return self.down(active * self.up(x))


class DecoderLayer(nnx.Module):
    """Attention and MLP, each with a norm before it (and one after it in Gemma) and a residual."""

    def __init__(self, config: LanguageConfig, **settings):
        self.attention = Attention(config, **settings)
        self.mlp = GatedMLP(config, **settings)
        width, post = config.width, config.post_norms
        self.attention_norm = _norm(config, width, True, settings)
        self.mlp_norm = _norm(config, width, True, settings)
        self.attention_post_norm = _norm(config, width, post, settings)
        self.mlp_post_norm = _norm(config, width, post, settings)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        context: LayerContext,
        sliding: Bool[Array, ""] | None,
        cache: KeyValues | None,
    ) -> tuple[Float[Array, "b t d"], KeyValues]:
        """The layer's output and its keys and values.

        `sliding` chooses between the context's two masks and rotations; None when all layers see
        everything.
        """
        turn, mask = context.turn, context.mask
        if sliding is not None:
            mask = jnp.where(sliding, context.local_mask, mask)
            pairs = zip(context.local_turn, turn, strict=True)
            cos, sin = (jnp.where(sliding, local, full) for local, full in pairs)
            turn = cos, sin
        update, cache = self.attention(
            _optional(self.attention_norm, x), turn, mask, cache, context.offset, context.causal
        )
        x = x + _optional(self.attention_post_norm, update)
        update = self.mlp(_optional(self.mlp_norm, x))
        return x + _optional(self.mlp_post_norm, update), cache


def _optional(norm: RMSNorm | None, x: Array) -> Array:
    return x if norm is None else norm(x)
