"""Decoder-only language models: Llama, Qwen2.5 and Qwen2.5-VL, Qwen3 and Gemma 3, one module."""
