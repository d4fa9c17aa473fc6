"""Tokenizers for tests: a tiny network, and one of plain pixel arithmetic that needs no compiling.

Both depend on the caption, and have the same grids.
"""

import functools
import zlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyratok_jax.models.pyratok.config import PyraTokConfig
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.nn.text_attention import TextCondition
from pyratok_jax.tokenizer import ClipTokenizer, Tokenizer
from tests.tiny_tokenizer import GRIDS, tiny_config


class PixelTokenizer(ClipTokenizer):
    """Ids are hashes of pixels of a cell; the finest level tells the grey it decodes to."""

    text = folder = None

    def __init__(self, seed: int = 0, bits: int = 6):
        self.config = tiny_config(bits=bits)
        self.checkpoint_hash = f"tiny-{seed}-{bits}"

    def encode_padded(self, video, captions=None):
        assert video.dtype == np.uint8 and (video.shape[1] - 1) % 4 == 0
        assert video.shape[2] % 16 == video.shape[3] % 16 == 0 and len(captions) == len(video)
        words = [np.uint64(zlib.crc32(c.encode()) if c else 0) for c in captions]
        grey = video.astype(np.uint64).sum(-1)
        levels = []
        for number, (dt, ds) in enumerate(GRIDS):
            cells = grey[:, ::dt, ::ds, ::ds] + 7 * grey[:, ::dt, ds - 1 :: ds, ds - 1 :: ds]
            if number < 3:
                cells = cells * np.uint64(2654435761) + np.array(words)[:, None, None, None]
            levels.append((cells % np.uint64(2**self.config.bits)).astype(np.uint32))
        return tuple(levels)

    def check_flips(self):
        pass

    def encode_flipped(self, video, captions, flips):
        """Ids of a level are moved by a sum over what was read of the one before."""
        levels, read = [], []
        moved = np.zeros(len(video), np.uint32)
        for level in self.encode_padded(video, captions):
            own = (level + moved[:, None, None, None]) % 2**self.config.bits
            changes = [np.random.default_rng((*key, len(read))) for key in flips.keys]
            bits = (len(own), *own.shape[1:], self.config.bits)
            chosen = np.stack([rng.random(bits[1:]) for rng in changes]) < flips.rate
            weights = np.uint32(1) << np.arange(self.config.bits, dtype=np.uint32)
            levels.append(own.astype(np.uint32))
            read.append(own.astype(np.uint32) ^ (chosen * weights).sum(-1, dtype=np.uint32))
            moved = read[-1].sum((1, 2, 3), dtype=np.uint32)
        return tuple(levels), tuple(read)

    def decode_padded(self, ids):
        shades = (ids[3] % 64 * 4).astype(np.uint8)
        first, rest = shades[:, :1], shades[:, 1:].repeat(4, axis=1)
        small = np.concatenate([first, rest], axis=1) + ids[0].astype(np.uint8).repeat(
            2, axis=2
        ).repeat(2, axis=3)
        return small.repeat(8, axis=2).repeat(8, axis=3)[..., None].repeat(3, axis=4)

    def code_embeddings(self, ids):
        return tuple(np.sin(x[..., None] * np.arange(1.0, 5.0)).astype(np.float32) for x in ids)


class LetterEmbeddings(Tokenizer):
    """Embeds captions by their letters, in place of a language model."""

    def embed(self, captions):
        embeddings = np.zeros((len(captions), 8, self.config.text_width), np.float32)
        mask = np.zeros((len(captions), 8), bool)
        for row, caption in enumerate(captions):
            for place, letter in enumerate((caption or "")[-8:]):
                embeddings[row, place] = np.sin(ord(letter) * np.arange(1, 13))
                mask[row, place] = True
        return TextCondition(jnp.asarray(embeddings), jnp.asarray(mask))


@functools.cache
def tiny_network() -> Tokenizer:
    """A tiny PyraTok with random weights."""
    return LetterEmbeddings(_random(tiny_config()), checkpoint_hash="tiny-network")


def _random(config: PyraTokConfig) -> PyraTok:
    """Drawn by NumPy: initialisers compile a program for every shape of a weight."""
    graph, state = nnx.split(nnx.eval_shape(lambda: PyraTok(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    flat = []
    for path, variable in nnx.to_flat_state(state):
        shape = variable.shape
        inputs = np.prod(shape[:-1]) if len(shape) > 1 else 25
        if path[-3:-1] == ("attention", "out"):
            inputs = 0.1  # Captions have to show.
        values = (1.5 * rng.normal(size=shape) / np.sqrt(inputs)).astype(np.float32)
        if path[-1] in ("scale", "gamma"):
            values += 1
        if path[-1].endswith("variance"):
            values = 1 + abs(values)
        flat.append((path, variable.replace(jnp.asarray(values))))
    return nnx.merge(graph, nnx.from_flat_state(flat))
