"""A trained tokenizer as one object: captions and video to token ids, ids to video.

Everything that is not training goes through it: reconstruction, token export, evaluation.
"""

from pyratok_jax.data.padding import to_model_range
from pyratok_jax.tokenizer.clips import (
    ClipTokenizer,
    EncodedClip,
    TokenizerLike,
    mean_bits_per_pixel,
)
from pyratok_jax.tokenizer.loading import DESCRIPTION, load_tokenizer, write_description
from pyratok_jax.tokenizer.programs import Programs, detokenize_step, to_pixels, tokenize_step
from pyratok_jax.tokenizer.tokenizer import Tokenizer, local_devices

__all__ = [
    "DESCRIPTION",
    "ClipTokenizer",
    "EncodedClip",
    "Programs",
    "Tokenizer",
    "TokenizerLike",
    "detokenize_step",
    "load_tokenizer",
    "local_devices",
    "mean_bits_per_pixel",
    "to_model_range",
    "to_pixels",
    "tokenize_step",
    "write_description",
]
