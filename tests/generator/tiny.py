"""A tiny tokenizer with a language model, a dataset of its tokens, and a training on them."""

import functools
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from pyratok_jax.data.captions import CaptionTokenizer
from pyratok_jax.io.shards import ShardWriter, shard_name
from pyratok_jax.models.language.config import LanguageConfig
from pyratok_jax.models.language.model import LanguageModel, TextEncoder
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.tokenizer import Tokenizer
from pyratok_jax.tokens.schema import TokenRecord, encode_record
from pyratok_jax.training.config import generator_training_config
from tests.tiny_tokenizer import tiny_config
from tests.tokens.tiny import _random

# Of clips of 5x16x16.
GRIDS = ((2, 1, 1), (2, 2, 2))
CAPTIONS = ("a b", "b c", "", "c c d")
LANGUAGE = LanguageConfig(
    vocabulary=16, width=12, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=16
)


class Letters:
    """A word tokenizer: one token per letter."""

    pad_token_id = 0

    def __call__(self, captions, add_special_tokens=True):
        return {"input_ids": [[ord(c) % 16 for c in text if c != " "] for text in captions]}


@functools.cache
def tokenizer() -> Tokenizer:
    model: PyraTok = _random(tiny_config(grids=((4, 16), (4, 8))))
    language = LanguageModel(LANGUAGE, rngs=nnx.Rngs(1))
    return Tokenizer(
        model,
        text=TextEncoder(language),
        captions=CaptionTokenizer(Letters(), 4),
        checkpoint_hash="ab" * 32,
    )


def record(number: int, **changes) -> TokenRecord:
    rng = np.random.default_rng(number)
    values = dict(
        tokens=tuple(rng.integers(0, 64, grid).astype("<u2") for grid in GRIDS),
        id=f"r{number}", video=f"r{number}", path="", caption=CAPTIONS[number % 4],
        text_encoder="", code="", checkpoint="ab" * 32, fps=8.0, start=-1.0, end=-1.0, block=0,
        blocks=1, first_frame=0, top=0, left=0, overlap=0, frames=5, height=16, width=16,
        padded_frames=5, padded_height=16, padded_width=16, video_frames=5, video_height=16,
        video_width=16, bits=6, vocabulary=64, levels=2,
    )  # fmt: skip
    return TokenRecord(**(values | changes))


def write_tokens(folder: Path, count: int = 8, **changes) -> Path:
    folder.mkdir(parents=True)
    path = folder / shard_name("tokens", "array_record", 0, 1)
    with ShardWriter(path, "array_record", "group_size:1,uncompressed") as writer:
        for number in range(count):
            writer.write(encode_record(record(number, **changes)))
    return folder


def config(tokens: Path, order: str, **changes) -> ConfigDict:
    made = generator_training_config(
        **({"steps": 6, "batch_size": 2, "log_every": 2, "ema_decay": 0.0} | changes)
    )
    made.tokenizer = "builtin:tiny"
    made.tokens.path = str(tokens)
    made.tokens.threads = 1
    made.checkpoint.every = 3
    made.optimizer.update({"learning_rate": 1e-2, "schedule": "constant"})
    made.model.update(
        {"order": order, "width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "context_patch": 1}
    )
    made.sampling.steps = (2, 1)
    return made


def same(a: dict, b: dict) -> bool:
    leaves = jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), dict(a), dict(b))
    return a.keys() == b.keys() and all(jax.tree.leaves(leaves))
