"""Models that encode and decode clips: a trained tokenizer, and baselines that test a task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import TokenizerLike


class Reconstructed(NamedTuple):
    """A decoded clip, uint8 like its original.

    Attributes:
        video: of the original's size.
        ids: token ids of every level; empty where they are not known.
        bits: of a token.
        stated: bits of the whole clip, as its maker says, where there are no ids.
    """

    video: np.ndarray
    ids: tuple[np.ndarray, ...]
    bits: int
    stated: float | None = None

    @property
    def clip_bits(self) -> float | None:
        """Bits of the whole clip; None where neither ids nor a statement tell."""
        if not self.ids:
            return self.stated
        return float(self.bits * sum(x.size for x in self.ids))


class Reconstructor(Protocol):
    """Encodes and decodes clips."""

    checkpoint_hash: str
    vocabulary: int

    def reconstruct(self, video: np.ndarray, caption: str | None, name: str = "") -> Reconstructed:
        """A clip uint8 (t, h, w, 3) encoded and decoded; `name` is the clip's id."""
        ...

    def embed(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Code embeddings (t, h, w, d) of the ids of every level; empty without embeddings."""
        ...


class TokenizerReconstructor:
    """A tokenizer; clips are padded as its grids need and cropped back.

    Args:
        tokenizer: what to run.
        window: frames at least that are encoded together, where a clip has more (see
            `VideoVAEConfig.window`); 0: whole clips.
    """

    def __init__(self, tokenizer: "TokenizerLike", window: int = 0) -> None:
        self.tokenizer, self.checkpoint_hash = tokenizer, tokenizer.checkpoint_hash
        self._window = tokenizer.config.vae.window(window) if window else 0
        self.vocabulary = tokenizer.config.vocabulary_size

    def reconstruct(self, video: np.ndarray, caption: str | None, name: str = "") -> Reconstructed:
        """Encode and decode one clip."""
        videos, ids, bits = [], [], 0
        step = self._window or len(video)
        for start in range(0, len(video), step):
            encoded = self.tokenizer.encode(video[start : start + step], caption)
            videos.append(self.tokenizer.decode(encoded))
            ids.append(encoded.ids)
            bits = encoded.bits_per_token
        levels = tuple(np.concatenate(level) for level in zip(*ids, strict=True))
        return Reconstructed(np.concatenate(videos), levels, bits)

    def embed(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Code embeddings (t, h, w, d) of the ids of every level."""
        embedded = self.tokenizer.code_embeddings([x[None] for x in ids])
        return [np.asarray(level[0], np.float32) for level in embedded]


class BaselineReconstructor:
    """`oracle` returns the clip and names every pixel's code; `random` returns noise."""

    vocabulary = 256

    def __init__(self, kind: str) -> None:
        self.kind, self.checkpoint_hash = kind, kind

    def reconstruct(self, video: np.ndarray, caption: str | None, name: str = "") -> Reconstructed:
        """The clip itself, or noise of its size."""
        rebuilt = video
        if self.kind == "random":
            rebuilt = np.random.default_rng(0).integers(0, 256, video.shape, np.uint8)
        return Reconstructed(rebuilt, (rebuilt[..., 0].astype(np.uint32),), 8)

    def embed(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """None: its codes have no embedding."""
        return []
