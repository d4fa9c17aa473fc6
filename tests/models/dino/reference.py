"""Tiny DINO networks of `transformers` with random weights, and their state as numpy."""

import numpy as np
import torch
import transformers as hf

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)


def _randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn anew: fresh ones hide mistakes behind zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator) * 0.2
        value.data = noise + (1.0 if value.ndim == 1 and name.endswith("weight") else 0.0)
    return model.eval()


def make(kind: str) -> torch.nn.Module:
    if kind.startswith("v3"):
        gated = kind == "v3-gated"
        act = "silu" if gated else "gelu"
        config = hf.DINOv3ViTConfig(
            **SIZES,
            intermediate_size=48,
            num_register_tokens=4,
            use_gated_mlp=gated,
            hidden_act=act,
        )
        return _randomised(hf.DINOv3ViTModel(config))
    if kind == "v2":
        config = hf.Dinov2Config(**SIZES, image_size=42, patch_size=14, mlp_ratio=2)
        return _randomised(hf.Dinov2Model(config))
    config = hf.Dinov2WithRegistersConfig(
        **SIZES, image_size=42, patch_size=14, mlp_ratio=2, num_register_tokens=3
    )
    return _randomised(hf.Dinov2WithRegistersModel(config))


def arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def hidden_states(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Final-norm states (n, l, d) of images in [-1, 1], normalised here once more by hand."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = ((images + 1) / 2 - mean) / std
    with torch.no_grad():
        tensor = torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)
        return model(tensor).last_hidden_state.numpy()
