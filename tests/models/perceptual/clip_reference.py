"""A tiny CLIP of `transformers` with random weights, and a word tokenizer, as a folder."""

from pathlib import Path

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["<s>", "</s>", "?", "a", "red", "blue", "circle", "moves", "left", "video", "of"]
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)


def make(**changes) -> hf.CLIPModel:
    text = SIZES | dict(vocab_size=len(WORDS), max_position_embeddings=8, eos_token_id=1,
                        bos_token_id=0, pad_token_id=1)  # fmt: skip
    vision = SIZES | dict(hidden_size=40, image_size=24, patch_size=8)
    config = hf.CLIPConfig(
        text_config=text | changes, vision_config=vision | changes, projection_dim=16
    )
    torch.manual_seed(0)
    model = hf.CLIPModel(config).eval()
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape) * 0.2
        value.data = noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model


def write(folder: Path, **changes) -> hf.CLIPModel:
    """A folder as transformers writes it, with its tokenizer."""
    model = make(**changes)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    hf.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="?"
    ).save_pretrained(folder)
    return model


def images(model: hf.CLIPModel, pictures: np.ndarray) -> np.ndarray:
    """Vectors of pictures (n, h, w, 3) that are normalised already."""
    pixels = torch.tensor(np.moveaxis(pictures, -1, 1))
    with torch.no_grad():
        pooled = model.vision_model(pixels).pooler_output
        return model.visual_projection(pooled).numpy()


def texts(model: hf.CLIPModel, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        pooled = model.text_model(torch.tensor(ids)).pooler_output
        return model.text_projection(pooled).numpy()
