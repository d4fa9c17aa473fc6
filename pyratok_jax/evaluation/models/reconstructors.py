"""Models that encode and decode clips: a trained tokenizer, and baselines that test a task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import TokenizerLike


class Reconstructed(NamedTuple):
    """A decoded clip, uint8 like its original, the token ids of every level, bits of a token."""

    video: np.ndarray
    ids: tuple[np.ndarray, ...]
    bits: int


class Reconstructor(Protocol):
    """Encodes and decodes clips."""

    checkpoint_hash: str
    vocabulary: int

    def reconstruct(self, video: np.ndarray, caption: str | None) -> Reconstructed:
        """A clip uint8 (t, h, w, 3) encoded and decoded."""
        ...

    def embed(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Code embeddings (t, h, w, d) of the ids of every level; empty without embeddings."""
        ...


class TokenizerReconstructor:
    """A tokenizer; clips are padded as its grids need and cropped back."""

    def __init__(self, tokenizer: "TokenizerLike") -> None:
        self.tokenizer, self.checkpoint_hash = tokenizer, tokenizer.checkpoint_hash
        self.vocabulary = tokenizer.config.vocabulary_size

    def reconstruct(self, video: np.ndarray, caption: str | None) -> Reconstructed:
        """Encode and decode one clip."""
        encoded = self.tokenizer.encode(video, caption)
        return Reconstructed(self.tokenizer.decode(encoded), encoded.ids, encoded.bits_per_token)

    def embed(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Code embeddings (t, h, w, d) of the ids of every level."""
        embedded = self.tokenizer.code_embeddings([x[None] for x in ids])
        return [np.asarray(level[0], np.float32) for level in embedded]


class BaselineReconstructor:
    """`oracle` returns the clip and names every pixel's code; `random` returns noise."""

    vocabulary = 256

    def __init__(self, kind: str) -> None:
        self.kind, self.checkpoint_hash = kind, kind

    def reconstruct(self, video: np.ndarray, caption: str | None) -> Reconstructed:
        """The clip itself, or noise of its size."""
        rebuilt = video
        if self.kind == "random":
            rebuilt = np.random.default_rng(0).integers(0, 256, video.shape, np.uint8)
        return Reconstructed(rebuilt, (rebuilt[..., 0].astype(np.uint32),), 8)

    def embed(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """None: its codes have no embedding."""
        return []
