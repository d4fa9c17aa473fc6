"""The decoder-only language model: layers stacked on a leading axis and run by one scan.

`TextEncoder` reads it as a text encoder: captions to hidden states after the final norm.
`quantize_model` packs the weights of a frozen one: kernels are unpacked where they are used, one
layer at a time, and multiplied in the activations' dtype.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from pyratok_jax.models.language.attention import KEPT, frequencies, rotation
from pyratok_jax.models.language.config import LanguageConfig
from pyratok_jax.models.language.kernels import GROUPS, quantize_kernel
from pyratok_jax.models.language.layers import DecoderLayer, LayerContext, Linear, RMSNorm
from pyratok_jax.nn.partitioning import constrain_token_sharding
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.nn.trace import checkpoint

# Rematerialisation policies of a layer: save everything, its matrix products, or its input and the
# output of attention.
_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layers": jax.checkpoint_policies.save_only_these_names(*KEPT),
}


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, perhaps with room for more.

    Attributes:
        keys, values: one slot per token, stacked over the layers.
        mask: True at slots that hold a real token.
        used: slots that are taken, by real tokens or padding; None: all, which jit then knows.
        position: the position that each row's next token will have.
    """

    keys: Float[Array, "layers b s n d"]
    values: Float[Array, "layers b s n d"]
    mask: Bool[Array, "b s"]
    used: Int[Array, ""] | None
    position: Int[Array, "b"]

    def extended(self, room: int) -> "Cache":
        """The same tokens with `room` more free slots."""
        slots = ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))
        keys, values = (jnp.pad(x, slots) for x in (self.keys, self.values))
        mask = jnp.pad(self.mask, ((0, 0), (0, room)))
        used = jnp.int32(self.mask.shape[1]) if self.used is None else self.used
        return self._replace(keys=keys, values=values, mask=mask, used=used)


class LanguageOutput(NamedTuple):
    """One pass.

    Attributes:
        hidden: after the final norm (of the last layer run).
        states: inputs of every layer, the embeddings first; None unless asked for.
        cache: all tokens read so far; None unless asked for.
    """

    hidden: Float[Array, "b t d"]
    states: Float[Array, "layers b t d"] | None
    cache: Cache | None


class LanguageModel(nnx.Module):
    """Embedding, decoder layers, final norm and head. Parameters of layers have axes (layer, ...).

    Nothing here asks for gradients of the parameters; a caller that freezes the model passes it as
    an argument that is not differentiated.
    """

    def __init__(
        self,
        config: LanguageConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: str = "none",
    ):
        """Build with random weights.

        Args:
            config: sizes.
            rngs: for the parameters.
            dtype: of activations; norms, rotations and softmax are always computed in float32.
            param_dtype: of the stored weights.
            remat: "none", "dots" (keep matrix products) or "layers" (keep the inputs of layers and
                the outputs of their attention).
        """
        if remat not in _POLICIES:
            raise ValueError(f"remat {remat!r}: expected one of {', '.join(_POLICIES)}")
        self.config, self.dtype, self.remat = config, jnp.dtype(dtype), remat
        init = nnx.initializers.normal(0.02 if config.scale_embedding else 0.1)
        shape = (config.vocabulary, config.width)
        self.embedding = nnx.Param(init(rngs.params(), shape, param_dtype))

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> DecoderLayer:
            return DecoderLayer(config, rngs=rngs, param_dtype=param_dtype)

        self.layers = stack(rngs)
        self.norm = RMSNorm(
            config.width, config.norm_eps, config.norm_offset, param_dtype=param_dtype
        )
        self.head = (
            None
            if config.tied
            else Linear(config.width, config.vocabulary, rngs=rngs, param_dtype=param_dtype)
        )

    def embed(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Embeddings as the first layer reads them."""
        x = self.embedding[...][ids]
        if self.config.scale_embedding:
            x = x * jnp.asarray(self.config.width**0.5, x.dtype)
        return x.astype(self.dtype)

    def logits(self, hidden: Float[Array, "*n d"]) -> Float[Array, "*n v"]:
        """Next-token logits of final hidden states, float32."""
        if self.head is not None:
            return self.head(hidden).astype(jnp.float32)
        table = self.embedding[...].astype(hidden.dtype)
        return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)

    def __call__(
        self,
        inputs: Int[Array, "b t"] | Float[Array, "b t d"],
        mask: Bool[Array, "b t"] | None = None,
        positions: Int[Array, "b t"] | Int[Array, "3 b t"] | None = None,
        *,
        cache: Cache | None = None,
        layers: int | None = None,
        keep_states: bool = False,
        keep_cache: bool = False,
    ) -> LanguageOutput:
        """Run the model over new tokens, after those in `cache` where one is given.

        Args:
            inputs: token ids, or embeddings as `embed` gives them.
            mask: True at real tokens; padding may be on either side; None means all are.
            positions: one row or M-RoPE's three; None counts the real tokens of each row.
            cache: tokens read before; a full one gets t slots more, another needs t free ones
                (`Cache.extended`). After a full one the order of all tokens is static, and long
                sequences take a kernel on TPUs (`fused_attention`).
            layers: run only the first n layers (their weights are copied); None runs all.
            keep_states: return the input of every layer.
            keep_cache: return keys and values, to continue from here.
        """
        x = self.embed(inputs) if jnp.issubdtype(inputs.dtype, jnp.integer) else inputs
        x = x.astype(self.dtype)
        b, t, _ = x.shape
        if mask is None:
            mask = jnp.ones((b, t), bool)
        fills = cache is None or cache.used is None
        if cache is not None and fills:
            cache = cache.extended(t)
        used = jnp.zeros((), jnp.int32)
        if cache is not None and cache.used is not None:
            used = cache.used
        start = jnp.zeros((b,), jnp.int32) if cache is None else cache.position
        if positions is None:
            positions = start[:, None] + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        slots = mask
        if cache is not None:
            slots = jax.lax.dynamic_update_slice(cache.mask, mask, (0, used))
        context = self._context(positions, slots, used, t)
        if not self.config.window and fills:
            context = context._replace(causal=slots)
        x, states, pair = self._run(x, context, cache, layers, keep_states, keep_cache)
        kept = None
        if pair is not None:
            last = jnp.max(jnp.where(mask, positions, -1), axis=-1)
            last = last if last.ndim == 1 else jnp.max(last, axis=0)
            taken = None if fills else used + t
            kept = Cache(*pair, slots, taken, jnp.maximum(start, last + 1))
        return LanguageOutput(self.norm(x), states, kept)

    def read(
        self,
        inputs: Int[Array, "b t"] | Float[Array, "b t d"],
        mask: Bool[Array, "b t"] | None = None,
        *,
        layers: int | None = None,
    ) -> tuple[Float[Array, "b t d"], Cache]:
        """Final hidden states of a prompt, and the cache to continue from."""
        output = self(inputs, mask, layers=layers, keep_cache=True)
        assert output.cache is not None
        return output.hidden, output.cache

    def _context(self, positions: Array, slots: Array, used: Array, t: int) -> LayerContext:
        """Masks and rotations of one pass; `slots` marks the real tokens among all keys."""
        config = self.config
        key_slot = jnp.arange(slots.shape[1])
        query_slot = used + jnp.arange(t)
        full = constrain_token_sharding(slots[:, None, :] & (key_slot <= query_slot[:, None]))
        turn = rotation(positions, frequencies(config.rope, config.head_dim), config.mrope_section)
        if not config.window:
            return LayerContext(turn, turn, full[:, None], full[:, None], used)
        # Distances count real tokens, so that padding does not eat into the window.
        order = jnp.cumsum(slots, axis=1)
        query_order = jax.lax.dynamic_slice_in_dim(order, used, t, axis=1)
        near = query_order[:, :, None] - order[:, None, :] < config.window
        rope = config.local_rope or config.rope
        local_turn = rotation(positions, frequencies(rope, config.head_dim), config.mrope_section)
        return LayerContext(turn, local_turn, full[:, None], (full & near)[:, None], used)

    def _run(
        self,
        x: Array,
        context: LayerContext,
        cache: Cache | None,
        layers: int | None,
        keep_states: bool,
        keep_cache: bool,
    ) -> tuple[Array, Array | None, tuple[Array, Array] | None]:
        graph, weights = nnx.split(self.layers)
        sliding = jnp.asarray(self.config.sliding) if any(self.config.sliding) else None
        pair = None if cache is None else (cache.keys, cache.values)
        stacked = (weights, sliding, pair)
        if layers is not None:
            stacked = jax.tree.map(lambda leaf: leaf[:layers], stacked)

        def body(x: Array, one: PyTree) -> tuple[Array, PyTree]:
            weights, sliding, pair = one
            layer = nnx.merge(graph, weights)
            y, pair = layer(constrain_token_sharding(x), context, sliding, pair)
            y = constrain_token_sharding(y)
            return y, (x if keep_states else None, pair if keep_cache else None)

        return _scan(body, self.remat, x, stacked)


def _scan(
    body: Callable[[Array, PyTree], tuple[Array, PyTree]], remat: str, x: Array, stacked: PyTree
) -> tuple[Array, PyTree, PyTree]:
    if remat != "none":
        body = checkpoint(body, prevent_cse=False, policy=_POLICIES[remat])
    x, (states, pair) = jax.lax.scan(body, x, stacked)
    return x, states, pair


class TextEncoder(nnx.Module):
    """A frozen language model read as a text encoder.

    Rows whose mask is all False have no caption; their embeddings are finite but mean nothing, and
    the tokenizer puts its learned null embedding in their place.
    """

    def __init__(self, language_model: LanguageModel):
        self.language_model = language_model

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.language_model.config.width

    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> TextCondition:
        """Embeddings of tokenised captions, in the model's compute dtype. No gradient."""
        hidden = self.language_model(ids, mask).hidden
        return TextCondition(jax.lax.stop_gradient(hidden), mask)

    def read(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> tuple[TextCondition, Cache]:
        """Embeddings, and the cache from which the autoregressive pass continues.

        A caption's tokens see nothing of the video that follows them, so one pass over the text
        serves both the tokenizer's levels and the autoregressive loss.
        """
        hidden, cache = jax.lax.stop_gradient(self.language_model.read(ids, mask))
        return TextCondition(hidden, mask), cache


def mean_embedding(text: TextCondition) -> Array:
    """Mean over the real tokens (b, d), float32; zero for a row without any."""
    weights = text.mask[..., None].astype("float32")
    total = (text.embeddings.astype("float32") * weights).sum(axis=1)
    return total / weights.sum(axis=1).clip(1.0)


def quantize_model(model: LanguageModel, bits: int, group: int | None = None) -> LanguageModel:
    """Quantise every linear map of the layers and the output head, in place.

    The embedding and the norms keep their dtype.

    Args:
        model: a frozen model.
        bits: 8 or 4.
        group: inputs per scale; None takes `GROUPS[bits]`, 0 all inputs.

    Returns:
        the same model.
    """
    size = GROUPS[bits] if group is None else group
    pack = jax.jit(quantize_kernel, static_argnums=(1, 2))
    for layer in [module for _, module in nnx.iter_modules(model)]:
        if isinstance(layer, Linear) and layer.scale is None:
            packed = pack(layer.kernel[...], bits, size)
            layer.kernel = nnx.Param(packed.values)
            layer.scale = nnx.data(nnx.Param(packed.scale))
            if packed.offset is not None:
                layer.offset = nnx.data(nnx.Param(packed.offset))
    return model


def parameter_bytes(model: nnx.Module) -> int:
    """Memory of all parameters."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
