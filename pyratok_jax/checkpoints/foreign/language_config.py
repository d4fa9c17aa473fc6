"""Published descriptions of language models, in every form they come in, to `LanguageConfig`.

Hugging Face `config.json` (flat or nested under `text_config`, `rope_scaling` or
`rope_parameters`), Meta's `params.json`, and the metadata of GGUF files.
"""

from collections.abc import Callable, Mapping

from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.errors import UserError, quoted, short
from pyratok_jax.io import Json
from pyratok_jax.io.documents import WRONG_VALUE, refusing
from pyratok_jax.models.language.attention import frequencies
from pyratok_jax.models.language.config import LanguageConfig, RopeConfig

# Files leave out what equals the defaults of the library that wrote them.
_DEFAULTS: dict[str, dict[str, Json]] = {
    "llama": {"rope_theta": 10000.0},
    "qwen2": {"rope_theta": 10000.0},
    "qwen2_5_vl": {"rope_theta": 1e6},
    "qwen3": {"rope_theta": 10000.0, "head_dim": 128},
    "gemma3": {
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "head_dim": 256, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 262208, "hidden_size": 2304,
        "intermediate_size": 9216, "num_hidden_layers": 26, "sliding_window": 4096,
        "sliding_window_pattern": 6, "query_pre_attn_scalar": 256,
        "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
        "bos_token_id": 2, "pad_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 131072,
    },
}  # fmt: skip
_FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen2_5_vl_text": "qwen2_5_vl",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
}
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_MROPE_SECTION = (16, 24, 24)
_REFUSED = (
    "mlp_bias", "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention",
)  # fmt: skip


def parse_config(values: Mapping[str, Json], *, has_head: bool | None = None) -> LanguageConfig:
    """A Hugging Face `config.json`.

    Args:
        values: the file's content.
        has_head: whether the weights hold an output head; decides where the file does not say.

    Raises:
        UserError: for a model of another kind, or a switch that is not supported.
    """
    nested = values.get("text_config") or {} if isinstance(values, Mapping) else None
    if not isinstance(nested, Mapping):
        raise UserError("config.json: expected an object of the model's sizes")
    family = _family(values, nested)
    merged = {**_DEFAULTS[family], **values, **{k: v for k, v in nested.items() if v is not None}}
    for name in _REFUSED:
        if merged.get(name):
            raise UserError(f"config.json: {name} = {quoted(merged[name])} is not supported")
    if merged.get("attention_bias") and family != "qwen2":
        raise UserError("config.json: attention_bias is not supported for this family")
    try:
        return _build(family, merged, nested, values, has_head)
    except KeyError as error:
        raise UserError(f"config.json: no {error.args[0]}, which a {family} model needs") from error
    except WRONG_VALUE as error:
        raise UserError(f"config.json: {short(str(error))}") from error


def _build(
    family: str,
    merged: Mapping[str, Json],
    nested: Mapping[str, Json],
    values: Mapping[str, Json],
    has_head: bool | None,
) -> LanguageConfig:
    heads, width, layers = (
        int(merged[k]) for k in ("num_attention_heads", "hidden_size", "num_hidden_layers")
    )
    activation = merged.get("hidden_activation") or merged.get("hidden_act") or "silu"
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not one of {', '.join(_ACTIVATIONS)}")
    rope, local_rope, section = _ropes(family, merged)
    sliding = _sliding(family, merged, layers)
    gemma = family == "gemma3"
    eos = merged.get("eos_token_id")
    return LanguageConfig(
        vocabulary=int(merged["vocab_size"]),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=int(merged.get("num_key_value_heads") or heads),
        head_dim=int(merged.get("head_dim") or width // heads),
        mlp_width=int(merged["intermediate_size"]),
        family=family,
        rope=rope,
        local_rope=local_rope,
        mrope_section=section,
        tokens_per_second=_tokens_per_second(values) if section else 1.0,
        norm_eps=float(merged.get("rms_norm_eps", 1e-6)),
        tied=_tied(family, values, nested, has_head),
        qkv_bias=family in ("qwen2", "qwen2_5_vl"),
        qk_norm=family in ("qwen3", "gemma3"),
        norm_offset=gemma,
        post_norms=gemma,
        activation=_ACTIVATIONS[activation],
        scale_embedding=gemma,
        query_scale=float(merged["query_pre_attn_scalar"]) if gemma else None,
        window=int(merged["sliding_window"]) if any(sliding) else None,
        sliding=sliding if any(sliding) else (),
        max_length=int(merged.get("max_position_embeddings", 8192)),
        bos=merged.get("bos_token_id"),
        pad=merged.get("pad_token_id"),
        eos=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    )


def _tokens_per_second(values: Mapping[str, Json]) -> float:
    return float((values.get("vision_config") or {}).get("tokens_per_second", 4))


def _family(values: Mapping[str, Json], nested: Mapping[str, Json]) -> str:
    kind = nested.get("model_type") or values.get("model_type")
    if str(kind) not in _FAMILIES:
        kind = values.get("model_type")
    if str(kind) not in _FAMILIES:
        raise UserError(
            f"config.json: model_type {quoted(kind)} is not supported; expected one of "
            f"{', '.join(_FAMILIES)}"
        )
    return _FAMILIES[str(kind)]


def _tied(
    family: str, values: Mapping[str, Json], nested: Mapping[str, Json], has_head: bool | None
) -> bool:
    flags = [level["tie_word_embeddings"] for level in (values, nested)
             if level.get("tie_word_embeddings") is not None]  # fmt: skip
    if flags:
        # A multimodal file may carry the flag on either level; a head in the weights settles it.
        return any(flags) if len(set(flags)) == 1 or has_head is None else not has_head
    # Files of tied models may hold the head too, so for Gemma its presence says nothing.
    return family == "gemma3" or has_head is False


def _sliding(family: str, merged: Mapping[str, Json], layers: int) -> tuple[bool, ...]:
    if not merged.get("sliding_window") or merged.get("use_sliding_window") is False:
        return ()
    types = merged.get("layer_types")
    if types:
        return tuple(kind == "sliding_attention" for kind in types)
    if family == "gemma3":
        pattern = int(merged["sliding_window_pattern"])
        return tuple((i + 1) % pattern != 0 for i in range(layers))
    if family.startswith("qwen") and merged.get("use_sliding_window"):
        return tuple(i >= int(merged.get("max_window_layers", layers)) for i in range(layers))
    return ()


def _ropes(
    family: str, merged: Mapping[str, Json]
) -> tuple[RopeConfig, RopeConfig | None, tuple[int, ...]]:
    scaling = merged.get("rope_parameters") or merged.get("rope_scaling") or {}
    theta = float(merged["rope_theta"])
    section: tuple[int, ...] = ()
    if family == "qwen2_5_vl":
        section = tuple(scaling.get("mrope_section") or _MROPE_SECTION)
    if family != "gemma3":
        return _rope(scaling, theta), None, section
    local = float(merged["rope_local_base_freq"])
    if "full_attention" in scaling or "sliding_attention" in scaling:
        full = _rope(scaling.get("full_attention") or {}, theta)
        return full, _rope(scaling.get("sliding_attention") or {}, local), ()
    return _rope(scaling, theta), RopeConfig(local), ()


def _rope(scaling: Mapping[str, Json], theta: float) -> RopeConfig:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    theta = float(scaling.get("rope_theta") or theta)
    if float(scaling.get("partial_rotary_factor") or 1) != 1:
        raise ValueError("partial_rotary_factor is not supported")
    if kind in ("default", "mrope"):
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", float(scaling["factor"]))
    if kind == "llama3":
        return RopeConfig(
            theta,
            "llama3",
            float(scaling["factor"]),
            float(scaling["low_freq_factor"]),
            float(scaling["high_freq_factor"]),
            int(scaling["original_max_position_embeddings"]),
        )
    raise ValueError(f"rope type {kind!r} is not one of default, mrope, linear, llama3")


def parse_meta(values: Mapping[str, Json], source: TensorSource) -> LanguageConfig:
    """Meta's `params.json`; sizes that it leaves out are read off the tensors.

    Raises:
        UserError: when neither says a size.
    """
    try:
        heads, width = int(values["n_heads"]), int(values["dim"])
        theta = float(values.get("rope_theta", 10000.0))
        scaled = bool(values.get("use_scaled_rope"))
        return LanguageConfig(
            vocabulary=source.info["tok_embeddings.weight"].shape[0],
            width=width,
            layers=int(values["n_layers"]),
            heads=heads,
            kv_heads=int(values.get("n_kv_heads") or heads),
            head_dim=width // heads,
            mlp_width=source.info["layers.0.feed_forward.w1.weight"].shape[0],
            rope=RopeConfig(theta, "llama3", 8.0) if scaled else RopeConfig(theta),
            norm_eps=float(values.get("norm_eps", 1e-5)),
            tied="output.weight" not in source,
            max_length=131072 if scaled else 8192,
        )
    except KeyError as error:
        raise UserError(
            f"{source.path}: no {error.args[0]} in params.json or the weights; expected a Llama "
            "checkpoint as Meta publishes it"
        ) from error
    except WRONG_VALUE as error:
        raise UserError(f"{source.path}: params.json: {error}") from error


_GGUF_FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen2vl": "qwen2_5_vl",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
}


def parse_gguf(source: TensorSource) -> LanguageConfig:
    """The metadata of a GGUF file.

    Raises:
        UserError: for an architecture or a scaling that is not supported.
    """
    with refusing(f"{source.path}: the facts in its header", "fetch it again"):
        return _parse_gguf(source)


def _parse_gguf(source: TensorSource) -> LanguageConfig:
    facts = source.metadata
    arch = facts.get("general.architecture")
    if arch not in _GGUF_FAMILIES:
        raise UserError(
            f"{source.path}: architecture {quoted(arch)} is not one of {', '.join(_GGUF_FAMILIES)}"
        )
    family = _GGUF_FAMILIES[arch]

    def fact(name: str, default: Json = None) -> Json:
        return facts.get(f"{arch}.{name}", default)

    heads, width = int(fact("attention.head_count")), int(fact("embedding_length"))
    layers = int(fact("block_count"))
    rope = _gguf_rope(source, fact)
    sections = fact("rope.dimension_sections")
    if family == "qwen2_5_vl" and sections:
        rope["mrope_section"] = [int(n) for n in sections[:3]]
    values = {
        "model_type": family,
        "num_attention_heads": heads,
        "num_key_value_heads": int(fact("attention.head_count_kv", heads)),
        "head_dim": int(fact("attention.key_length", width // heads)),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": int(fact("feed_forward_length")),
        "vocab_size": source.info["token_embd.weight"].shape[0],
        "rms_norm_eps": float(fact("attention.layer_norm_rms_epsilon", 1e-6)),
        "max_position_embeddings": int(fact("context_length", 8192)),
        "rope_scaling": rope,
        "hidden_act": "gelu_pytorch_tanh" if family == "gemma3" else "silu",
        "bos_token_id": facts.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": facts.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": facts.get("tokenizer.ggml.padding_token_id"),
    }
    if fact("rope.freq_base") is not None:
        values["rope_theta"] = float(fact("rope.freq_base"))
    if family == "gemma3":
        values["sliding_window"] = fact("attention.sliding_window")
        # The 27B model (62 layers) divides scores by sqrt(width / heads), the others by head size.
        values["query_pre_attn_scalar"] = width / heads if layers == 62 else values["head_dim"]
    return parse_config(values, has_head="output.weight" in source)


def _gguf_rope(source: TensorSource, fact: Callable[..., Json]) -> dict[str, Json]:
    kind = fact("rope.scaling.type")
    if kind not in (None, "none", "linear"):
        raise UserError(f"{source.path}: rope scaling {quoted(kind)} is not supported in GGUF")
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(fact("rope.scaling.factor"))}
    if "rope_freqs.weight" not in source:
        return {}
    # The file holds the divisor of every frequency instead of the rule: find the rule again.
    divisors = source.read("rope_freqs.weight").reshape(-1).astype("float32")
    size = 2 * divisors.size
    theta = float(fact("rope.freq_base", 10000.0))
    factor = float(divisors.max())
    expected = frequencies(RopeConfig(theta), size) / frequencies(
        RopeConfig(theta, "llama3", factor), size
    )
    # Written so that values that are not finite fail too.
    if not abs(expected / divisors - 1).max() <= 1e-3:
        raise UserError(f"{source.path}: rope_freqs.weight follows no known rule")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
