"""Where a language model's arrays come from: the names of every published layout."""

from collections.abc import Callable

import numpy as np

from pyratok_jax.checkpoints.conversion import Entry, Transform, identity, linear
from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.errors import UserError
from pyratok_jax.models.language.config import LanguageConfig

_VISION = ("visual.", "vision_tower.", "multi_modal_projector.", "vision_model.")
_COMPUTED = ("rotary_emb.inv_freq", "rope.freqs", "rope_freqs.weight")

# (our name, Hugging Face, Meta, GGUF) of one layer's linear maps.
_LINEAR = (
    ("attention.query", "self_attn.q_proj", "attention.wq", "attn_q"),
    ("attention.key", "self_attn.k_proj", "attention.wk", "attn_k"),
    ("attention.value", "self_attn.v_proj", "attention.wv", "attn_v"),
    ("attention.out", "self_attn.o_proj", "attention.wo", "attn_output"),
    ("mlp.gate", "mlp.gate_proj", "feed_forward.w1", "ffn_gate"),
    ("mlp.up", "mlp.up_proj", "feed_forward.w3", "ffn_up"),
    ("mlp.down", "mlp.down_proj", "feed_forward.w2", "ffn_down"),
)
_NORMS = (
    ("attention_norm", "input_layernorm", "attention_norm", "attn_norm"),
    ("mlp_norm", "post_attention_layernorm", "ffn_norm", "ffn_norm"),
)
_POST_NORMS = (
    ("attention_norm", "input_layernorm", "", "attn_norm"),
    ("attention_post_norm", "post_attention_layernorm", "", "post_attention_norm"),
    ("mlp_norm", "pre_feedforward_layernorm", "", "ffn_norm"),
    ("mlp_post_norm", "post_feedforward_layernorm", "", "post_ffw_norm"),
)
_QK_NORMS = (
    ("attention.query_norm", "self_attn.q_norm", "", "attn_q_norm"),
    ("attention.key_norm", "self_attn.k_norm", "", "attn_k_norm"),
)
LAYOUTS = ("huggingface", "meta", "gguf")


def layout_of(source: TensorSource) -> str:
    """Which of `LAYOUTS` the names follow.

    Raises:
        UserError: for none of them.
    """
    if "token_embd.weight" in source:
        return "gguf"
    if "tok_embeddings.weight" in source:
        return "meta"
    _prefix(source)
    return "huggingface"


def _prefix(source: TensorSource) -> str:
    """What stands before `embed_tokens` in a Hugging Face file."""
    name = "embed_tokens.weight"
    found = [key[: -len(name)] for key in source.keys() if key.endswith(name)]  # noqa: SIM118
    if len(found) != 1:
        raise UserError(
            f"{source.path}: {len(found)} tensors named *{name}, expected one; this is no language "
            "model in a Hugging Face, Meta or GGUF layout"
        )
    return found[0]


def head_key(source: TensorSource) -> str | None:
    """The output head's name, when the file has one."""
    for key in ("lm_head.weight", "language_model.lm_head.weight", "output.weight"):
        if key in source:
            return key
    return None


def half_split(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Rows of a query or key map from interleaved pairs (2i, 2i+1) to pairs (i, i + d/2)."""

    def transform(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(heads, -1, 2, *x.shape[1:])
        return rows.swapaxes(1, 2).reshape(x.shape)

    return transform


def entries(source: TensorSource, config: LanguageConfig) -> list[Entry]:
    """Every array of the model and the tensor it comes from."""
    layout = layout_of(source)
    column = 1 + LAYOUTS.index(layout)
    prefix = {"huggingface": _prefix(source) if column == 1 else "", "meta": "", "gguf": ""}[layout]
    layers = prefix + ("blk." if layout == "gguf" else "layers.")
    shift = _minus_one if layout == "gguf" and config.norm_offset else identity
    names = {
        "embedding": ("embed_tokens.weight", "tok_embeddings.weight", "token_embd.weight"),
        "norm.weight": ("norm.weight", "norm.weight", "output_norm.weight"),
    }
    result = [
        Entry(prefix + names["embedding"][column - 1], "embedding"),
        Entry(prefix + names["norm.weight"][column - 1], "norm.weight", shift),
    ]
    if not config.tied:
        result.append(Entry(head_key(source) or "lm_head.weight", "head.kernel", linear))
    norms = _POST_NORMS if config.post_norms else _NORMS
    if config.qk_norm:
        norms = (*norms, *_QK_NORMS)
    interleaved = layout == "meta" or (layout == "gguf" and config.family == "llama")
    for index in range(config.layers):
        base = f"{layers}{index}."
        for row in norms:
            target = f"layers.{row[0]}.weight"
            result.append(Entry(f"{base}{row[column]}.weight", target, shift, index))
        result += _linear_entries(base, column, config, interleaved, index)
    return result


def _linear_entries(
    base: str, column: int, config: LanguageConfig, interleaved: bool, index: int
) -> list[Entry]:
    result = []
    for row in _LINEAR:
        part = row[0].split(".")[-1]
        order: Transform = identity
        if interleaved and part in ("query", "key"):
            order = half_split(config.heads if part == "query" else config.kv_heads)
        target = f"layers.{row[0]}"
        kernel = _then(order, linear) if order is not identity else linear
        result.append(Entry(f"{base}{row[column]}.weight", f"{target}.kernel", kernel, index))
        if config.qkv_bias and part in ("query", "key", "value"):
            result.append(Entry(f"{base}{row[column]}.bias", f"{target}.bias", order, index))
    return result


def _then(first: Transform, second: Transform) -> Transform:
    return lambda x: second(first(x))


def _minus_one(x: np.ndarray) -> np.ndarray:
    """GGUF stores Gemma's norm weights as 1 + w."""
    return x.astype(np.float32) - 1.0


def skip(config: LanguageConfig) -> Callable[[str], str | None]:
    """For `match`: why a tensor that no entry uses may be left out."""

    def reason(key: str) -> str | None:
        if any(part in f".{key}" for part in (f".{name}" for name in _VISION)):
            return "vision weights; only the text model is converted"
        if key.endswith(_COMPUTED):
            return "computed from the configuration"
        if config.tied and key.endswith(("lm_head.weight", "output.weight")):
            return "output head tied to the embedding"
        return None

    return reason
