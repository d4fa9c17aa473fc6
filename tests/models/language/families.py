"""Tiny random transformers models of every family, and their JAX counterparts."""

import numpy as np
import torch
import transformers
from flax import nnx

from pyratok_jax.checkpoints.conversion import load_arrays
from pyratok_jax.checkpoints.foreign.language_config import parse_config
from pyratok_jax.checkpoints.foreign.language_model import make_plan
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.partition import build_module
from pyratok_jax.models.language.model import LanguageModel

# More threads than free cores make torch wait in busy loops; these models are tiny.
torch.set_num_threads(1)

_SIZES = {
    "vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 40, "attn_implementation": "eager",
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def _config(family: str) -> transformers.PretrainedConfig:
    if family == "llama":
        return transformers.LlamaConfig(**_SIZES, rms_norm_eps=1e-5)
    if family == "llama31":
        scaling = {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        }  # fmt: skip
        return transformers.LlamaConfig(
            **_SIZES, head_dim=16, rope_parameters=scaling, tie_word_embeddings=True
        )
    if family == "qwen2":
        return transformers.Qwen2Config(**_SIZES)
    if family == "qwen3":
        return transformers.Qwen3Config(**_SIZES, head_dim=12, tie_word_embeddings=True)
    if family == "gemma3":
        return transformers.Gemma3TextConfig(
            **_SIZES,
            head_dim=16,
            sliding_window=4,
            query_pre_attn_scalar=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters=_GEMMA_ROPE,
        )
    sizes = {k: v for k, v in _SIZES.items() if k != "attn_implementation"}
    vision = {
        "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 8,
        "out_hidden_size": 32, "fullatt_block_indexes": [0], "tokens_per_second": 2,
    }  # fmt: skip
    text = {**sizes, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    return transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=60,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
        attn_implementation="eager",
    )


_CLASSES = {
    "llama": transformers.LlamaForCausalLM,
    "llama31": transformers.LlamaForCausalLM,
    "qwen2": transformers.Qwen2ForCausalLM,
    "qwen3": transformers.Qwen3ForCausalLM,
    "gemma3": transformers.Gemma3ForCausalLM,
    "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
}
FAMILIES = tuple(_CLASSES)


def reference(family: str) -> torch.nn.Module:
    """A transformers model whose every parameter is random, norms and biases too."""
    torch.manual_seed(0)
    model = _CLASSES[family](_config(family)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim > 1:
                parameter.copy_(noise * (0.5 if "embed" in name else parameter.shape[-1] ** -0.5))
            else:
                parameter.add_(0.2 * noise)
    return model


def state_arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The state dictionary as numpy arrays, under the names that `save_pretrained` uses."""
    text = model.config.get_text_config()
    tied = getattr(text, "tie_word_embeddings", False) or model.config.tie_word_embeddings
    return {
        name: value.detach().numpy().copy()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def ours(model: torch.nn.Module, **settings) -> LanguageModel:
    """The same model in JAX, by way of the converter."""
    source = sources_from_arrays(state_arrays(model))
    config = parse_config(model.config.to_dict(), has_head="lm_head.weight" in source)
    arrays = load_arrays(make_plan(source, config))
    return build_module(lambda: LanguageModel(config, rngs=nnx.Rngs(0), **settings), arrays)
