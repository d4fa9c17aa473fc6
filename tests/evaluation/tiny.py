"""A tokenizer with a language model, both of random weights and very small."""

from flax import nnx

from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.models.alignment import Alignment
from pyratok_jax.models.language.config import tiny
from pyratok_jax.models.language.model import LanguageModel, TextEncoder
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.tokenizer import Tokenizer
from tests.tiny_tokenizer import GRIDS, tiny_config


class Letters:
    """A tokenizer of characters."""

    pad_token_id = 0

    def __call__(self, text, add_special_tokens=True):
        texts = [text] if isinstance(text, str) else text
        ids = [[1] * add_special_tokens + [ord(c) % 120 for c in t] for t in texts]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i) for i in ids)


def language_tokenizer() -> Tokenizer:
    """A tiny random tokenizer with a tiny random language model."""
    language = LanguageModel(tiny(vocabulary=128), rngs=nnx.Rngs(1))
    width = language.config.width
    config = tiny_config(grids=GRIDS[-2:], text_width=width)
    return Tokenizer(
        PyraTok(config, rngs=nnx.Rngs(0)),
        text=TextEncoder(language),
        captions=CaptionTokenizer(Letters(), 16),
        alignment=Alignment(6, 2, width, rngs=nnx.Rngs(2)),
        checkpoint_hash="1" * 64,
    )
