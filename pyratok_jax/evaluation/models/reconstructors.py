"""Clips of a source for reconstruction tasks, and the models that rebuild them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pyratok_jax.assets.fetch import sha256_of
from pyratok_jax.data.padding import crop_clip, pad_clip
from pyratok_jax.data.sources.records import ClipRecord
from pyratok_jax.data.sources.registry import load_source
from pyratok_jax.data.video.files import is_remote, probe, read_clip, read_image, resize_image
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.framework import Item


class Rebuilt(NamedTuple):
    """A rebuilt clip, uint8 like its original, and the token ids of every level."""

    video: np.ndarray
    ids: tuple[np.ndarray, ...]
    bits: int


class Rebuilder(Protocol):
    """Anything that takes a clip apart and builds it again."""

    checkpoint_hash: str
    vocabulary: int

    def rebuild(self, video: np.ndarray, caption: str | None) -> Rebuilt:
        """The clip uint8 (t, h, w, 3) after coding."""
        ...


class TokenizerRebuilder:
    """A tokenizer; clips are padded as its grids need and cropped back."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.checkpoint_hash = tokenizer, tokenizer.checkpoint_hash
        self.vocabulary = tokenizer.config.vocabulary or 2**tokenizer.config.bits

    def rebuild(self, video: np.ndarray, caption: str | None) -> Rebuilt:
        """Encode and decode one clip."""
        config = self.tokenizer.config
        padded, padding = pad_clip(
            video,
            temporal_factor=config.vae.temporal_factor,
            spatial_multiple=config.spatial_multiple,
        )
        ids = self.tokenizer.encode(padded[None], [caption])
        rebuilt = crop_clip(self.tokenizer.decode(ids)[0], padding)
        return Rebuilt(rebuilt, tuple(x[0] for x in ids), config.bits)

    def embed(self, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Code embeddings (t, h, w, d) of the ids of every level."""
        embedded = self.tokenizer.code_embeddings([x[None] for x in ids])
        return [np.asarray(level[0], np.float32) for level in embedded]


class StandIn:
    """`oracle` gives the clip back and names every pixel's code; `random` gives noise."""

    vocabulary = 256

    def __init__(self, kind: str):
        self.kind, self.checkpoint_hash = kind, kind

    def rebuild(self, video: np.ndarray, caption: str | None) -> Rebuilt:
        """The clip itself, or noise of its size."""
        rebuilt = video
        if self.kind == "random":
            rebuilt = np.random.default_rng(0).integers(0, 256, video.shape, np.uint8)
        return Rebuilt(rebuilt, (rebuilt[..., 0].astype(np.uint32),), 8)


def clip_items(data: str) -> list[Item]:
    """One item per clip of a source."""
    return [Item(record.id, record) for record in load_source(data)]


def central_clip(record: ClipRecord, frames: int, side: int) -> np.ndarray:
    """`frames` consecutive frames from the middle, short side resized to `side`, square crop.

    Still images give one frame. `side` 0 keeps the size and crops nothing.
    """
    if record.stored is not None:
        return _from_images(record.stored, frames, side)
    info = probe(record.media)
    start, end = record.start or 0.0, record.end if record.end is not None else info.seconds
    count = min(frames, max(round((end - start) * info.fps), 1))
    first = start + max((end - start) - count / info.fps, 0.0) / 2
    size = covering_size((info.height, info.width), side) if side else None
    return square(read_clip(record.media, start=first, frames=count, size=size), side)


def covering_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of the same shape, of which the shorter is `side`."""
    scale = side / min(size)
    return max(round(size[0] * scale), side), max(round(size[1] * scale), side)


def square(video: np.ndarray, side: int) -> np.ndarray:
    """The middle `side` x `side` pixels of (t, h, w, 3); `side` 0: all."""
    if not side:
        return video
    top, left = (video.shape[1] - side) // 2, (video.shape[2] - side) // 2
    return video[:, top : top + side, left : left + side]


def prepared(frame: np.ndarray, side: int) -> np.ndarray:
    """A frame (h, w, 3), short side resized to `side` and cropped to a square; 0: as it is."""
    if not side:
        return frame
    return square(resize_image(frame, covering_size(frame.shape[:2], side))[None], side)[0]


def _from_images(images: Sequence[bytes], frames: int, side: int) -> np.ndarray:
    count = min(frames, len(images))
    first = (len(images) - count) // 2
    return np.stack([prepared(read_image(x), side) for x in images[first : first + count]])


def refuse_leakage(data: str, train: str) -> int:
    """Compare an evaluation source with a training source, by local path and by file content.

    Returns:
        how many files of `data` were compared.

    Raises:
        UserError: a file is in both.
    """
    evaluated, trained = _files(load_source(data)), _files(load_source(train))
    sizes = {path.stat().st_size for path in trained}
    known = {sha256_of(path) for path in trained} if sizes else set()
    shared = [p for p in evaluated if p.stat().st_size in sizes and sha256_of(p) in known]
    if shared:
        raise UserError(
            f"{len(shared)} of {len(evaluated)} files of {data} are also in the training source "
            f"{train}, first {shared[0]}; evaluate on files that were not trained on"
        )
    return len(evaluated)


def _files(records: Sequence[ClipRecord]) -> list[Path]:
    paths = {Path(r.path) for r in records if r.data is None and not is_remote(r.path)}
    return sorted(path for path in paths if path.is_file())
