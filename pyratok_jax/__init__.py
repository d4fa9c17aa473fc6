"""PyraTok in JAX: a language-aligned, pyramidal video tokenizer.

    import pyratok_jax as pt

    tok = pt.load_tokenizer("runs/demo")
    encoded = tok.encode(video, "a red square moves left")
    video = tok.decode(encoded)

Public names are imported when they are first used: importing the package loads neither JAX nor
TensorFlow. See docs/api.md.
"""

from typing import TYPE_CHECKING

from pyratok_jax.lazy import lazy_names

if TYPE_CHECKING:
    from pyratok_jax.generator import Generator as Generator
    from pyratok_jax.generator import load_generator as load_generator
    from pyratok_jax.tokenizer import EncodedClip as EncodedClip
    from pyratok_jax.tokenizer import Tokenizer as Tokenizer
    from pyratok_jax.tokenizer import load_tokenizer as load_tokenizer
    from pyratok_jax.tokens.dataset import TokenDataset as TokenDataset

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC = {
    "EncodedClip": "pyratok_jax.tokenizer",
    "Generator": "pyratok_jax.generator",
    "TokenDataset": "pyratok_jax.tokens.dataset",
    "Tokenizer": "pyratok_jax.tokenizer",
    "load_generator": "pyratok_jax.generator",
    "load_tokenizer": "pyratok_jax.tokenizer",
}

__all__ = [
    "EncodedClip",
    "Generator",
    "TokenDataset",
    "Tokenizer",
    "__version__",
    "load_generator",
    "load_tokenizer",
]


__getattr__ = lazy_names(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
