"""Published models at full size, names and shapes alone: everything maps, both ways."""

from pathlib import Path

import pytest
import torch
import transformers

from pyratok_jax.checkpoints.foreign.language_config import parse_config
from pyratok_jax.checkpoints.foreign.language_model import make_plan
from pyratok_jax.checkpoints.foreign.sources import TensorInfo, TensorSource
from tests.weights_conversion.language_configs import GEMMA_4B, QWEN, VISION


def _source(shapes):
    def read(key):
        raise AssertionError("matching reads no values")

    info = {key: TensorInfo(tuple(shape), "bfloat16") for key, shape in shapes.items()}
    return TensorSource(Path("published"), "safetensors", [], info, read)


def _published(make, config):
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in make(config).state_dict().items()}


def _qwen_new():
    config = transformers.Qwen2_5_VLConfig(
        text_config={**QWEN, "tie_word_embeddings": True},
        vision_config={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "out_hidden_size": 2048, "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
    )  # fmt: skip
    shapes = _published(transformers.Qwen2_5_VLForConditionalGeneration, config)
    values = {"model_type": "qwen2_5_vl", "tie_word_embeddings": True, "vision_config": VISION}
    return shapes, {**values, "text_config": {**QWEN, "model_type": "qwen2_5_vl_text"}}


def _qwen_old():
    shapes, values = _qwen_new()
    renamed = {
        key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): shape
        for key, shape in shapes.items()
        if key != "lm_head.weight"
    }
    flat = {**values, **values.pop("text_config"), "model_type": "qwen2_5_vl"}
    return renamed, flat


def _llama():
    values = {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "rope_theta": 500000.0,
    }  # fmt: skip
    config = transformers.LlamaConfig(**{k: v for k, v in values.items() if k != "model_type"})
    return _published(transformers.LlamaForCausalLM, config), values


def _gemma():
    text = GEMMA_4B["text_config"]
    config = transformers.Gemma3TextConfig(**{k: v for k, v in text.items() if k != "model_type"})
    return _published(transformers.Gemma3ForCausalLM, config), GEMMA_4B


@pytest.mark.parametrize(
    ("make", "values", "skipped"),
    [
        (_qwen_new, 3_085_938_688, 391),
        (_qwen_old, 3_085_938_688, 390),
        (_llama, 8_030_261_248, 0),
        (_gemma, 3_880_263_168, 1),
    ],
)
def test_every_tensor_maps(make, values, skipped):
    shapes, config = make()
    source = _source(shapes)
    plan = make_plan(source, parse_config(config, has_head="lm_head.weight" in source)).check()
    total = 0
    for shape in plan.shapes.values():
        size = 1
        for n in shape:
            size *= n
        total += size
    assert total == values
    assert len(plan.skipped) == skipped
    used = [entry.source for entries in plan.parts.values() for entry in entries]
    assert sorted([*used, *plan.skipped]) == sorted(shapes)
    assert len(used) == len(set(used))


def test_a_problem_of_any_kind_is_found():
    shapes, config = _llama()
    key = "model.layers.31.mlp.up_proj.weight"
    for change in ({key: (14336, 4095)}, {"model.layers.32.mlp.up_proj.weight": (1, 1)}):
        assert not make_plan(_source({**shapes, **change}), parse_config(config)).complete
    del shapes[key]
    assert not make_plan(_source(shapes), parse_config(config)).complete
