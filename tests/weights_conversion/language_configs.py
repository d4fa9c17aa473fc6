"""Published configurations, as the hub has them."""

QWEN = {
    "hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16,
    "num_hidden_layers": 36, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "vocab_size": 151936, "max_position_embeddings": 128000, "hidden_act": "silu",
    "sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 70,
}  # fmt: skip
VISION = {"tokens_per_second": 2, "hidden_size": 1280}
# Sparse, as the hub has it: what equals the library's defaults is left out.
GEMMA_4B = {
    "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
}  # fmt: skip
