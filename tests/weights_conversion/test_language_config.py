"""Published configurations in all their forms, against each other and against transformers."""

import json

import pytest
import transformers

from pyratok_jax.checkpoints.foreign.language_config import parse_config
from pyratok_jax.errors import UserError
from pyratok_jax.models.language.config import LanguageConfig, RopeConfig
from tests.weights_conversion.language_configs import GEMMA_4B, QWEN, VISION


def test_qwen_flat_and_nested_are_one_model():
    flat = {
        **QWEN, "model_type": "qwen2_5_vl", "tie_word_embeddings": True, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vision_config": VISION,
    }  # fmt: skip
    nested = {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "vision_config": VISION,
        "text_config": {
            **QWEN,
            "model_type": "qwen2_5_vl_text",
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24],
            },
        },
    }  # fmt: skip
    config = parse_config(flat)
    assert parse_config(nested) == config
    assert config.head_dim == 128 and config.qkv_bias and config.tied
    assert config.mrope_section == (16, 24, 24) and config.tokens_per_second == 2
    assert config.rope == RopeConfig(1e6) and config.window is None


def test_gemma_sparse_and_complete_are_one_model():
    sparse = parse_config(GEMMA_4B)
    text = transformers.Gemma3TextConfig(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        sliding_window=1024,
        rope_scaling={"factor": 8.0, "rope_type": "linear"},
        eos_token_id=[1, 106],
    )
    assert parse_config(text.to_dict()) == sparse
    assert sparse.rope == RopeConfig(1e6, "linear", 8.0)
    assert sparse.local_rope == RopeConfig(1e4)
    assert [i for i, near in enumerate(sparse.sliding) if not near] == [5, 11, 17, 23, 29]
    assert (sparse.head_dim, sparse.query_scale, sparse.window) == (256, 256.0, 1024)
    assert sparse.eos == (1, 106)


def test_llama31_rope_scaling():
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    values = {
        "model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_hidden_layers": 32, "intermediate_size": 14336,
        "vocab_size": 128256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    old = parse_config({**values, "rope_theta": 500000.0, "rope_scaling": scaling})
    new = parse_config({**values, "rope_parameters": {**scaling, "rope_theta": 500000.0}})
    assert old == new
    assert old.rope == RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)


def test_json_round_trip():
    config = parse_config(GEMMA_4B)
    assert LanguageConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="colour"):
        LanguageConfig.from_dict({**config.to_dict(), "colour": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "relu"}, "'relu'"),
        ({"num_key_value_heads": 3}, "kv heads"),
        ({"hidden_size": None}, "config.json"),
    ],
)
def test_what_is_not_supported_is_refused(changes, message):
    values = {
        "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
        "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 100,
    }  # fmt: skip
    parse_config(values)
    with pytest.raises(UserError, match=message):
        parse_config({**values, **changes})


def test_a_missing_size_is_named():
    with pytest.raises(UserError, match="num_hidden_layers"):
        parse_config({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4})
