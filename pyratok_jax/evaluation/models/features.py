"""Features of a video that can be compared with text: the embedded codes of every level.

`TokenizerFeatures` takes them from a trained tokenizer. The baselines test a task and not the
tokenizer: with `OracleFeatures`, made of the ground truth, a task must reach its metric's maximum,
with `RandomFeatures` chance.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import jax.numpy as jnp
import numpy as np

from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.task import BrokenItemError, parse_numbers
from pyratok_jax.losses.text import best_tokens, peak_cosines

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import Tokenizer

POOLINGS = ("mean", "tokens", "peaks")
Cell = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class LevelFeatures:
    """One level of a clip.

    Attributes:
        values: (r, h, w, d) float32, a vector per token; tokens that only show padding are left
            out.
        rows: (frames,) for every true frame the first index of `values` that shows it.
        cell: height and width in pixels that a token represents.
    """

    values: np.ndarray
    rows: np.ndarray
    cell: Cell


@dataclasses.dataclass(frozen=True)
class Features:
    """All levels of a clip, coarse to fine, and the bits of its tokens (None: unknown)."""

    levels: tuple[LevelFeatures, ...]
    bits: float | None = None


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is to be seen where: for the oracle alone.

    Attributes:
        vectors: (n, d) the text features of the n things that the task asks for.
        masks: (n, t, h, w) bool, where each is; h = w = 1 for the whole frame.
    """

    vectors: np.ndarray
    masks: np.ndarray


# Only the oracle asks for it: making masks is not free.
TruthSource = Callable[[], Truth]


class Extractor(Protocol):
    """Where a zero-shot task's features come from, and how many levels they have."""

    checkpoint_hash: str
    levels: int

    def video(
        self, clip: np.ndarray, truth: TruthSource | None = None, caption: str | None = None
    ) -> Features:
        """Features of a clip, uint8 (t, h, w, 3) of any size; `truth` is ignored by real ones."""
        ...

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """Features of texts, (n, d) float32."""
        ...


class TokenizerFeatures:
    """The code embeddings of a trained tokenizer.

    Clips longer than `window` frames, or the next number that the VAE takes, are encoded window by
    window, each on its own, so that memory does not grow with their length. A window's frame 0 has
    codes of its own, which show a picture and no motion. With `overlap` every window but the first
    begins with the last frame of the one before and is not read there: for what happens. For what
    is where, those pictures are the best codes.
    """

    def __init__(self, tokenizer: "Tokenizer", window: int = 33, *, overlap: bool = False) -> None:
        self.tokenizer, self.overlap = tokenizer, overlap
        self.window = tokenizer.config.vae.window(window)
        self.checkpoint_hash: str = tokenizer.checkpoint_hash
        self.levels = len(tokenizer.config.grids)

    def video(
        self, clip: np.ndarray, truth: TruthSource | None = None, caption: str | None = None
    ) -> Features:
        """As `Extractor.video`.

        Raises:
            BrokenItemError: an empty clip.
        """
        if min(clip.shape) < 1:
            raise BrokenItemError(f"the clip is empty: {clip.shape}")
        shared = min(self.window - 1, 1) if self.overlap else 0
        later = range(self.window - shared, len(clip) - shared, self.window - shared)
        parts = [self._window(clip[: self.window], caption)]
        parts += [self._window(clip[i : i + self.window], caption, shared) for i in later]
        levels = []
        for level in zip(*(part.levels for part in parts), strict=True):
            counts = np.cumsum([0] + [len(piece.values) for piece in level[:-1]])
            rows = [piece.rows + first for piece, first in zip(level, counts, strict=True)]
            values = np.concatenate([piece.values for piece in level])
            levels.append(LevelFeatures(values, np.concatenate(rows), level[0].cell))
        return Features(tuple(levels), sum(part.bits or 0 for part in parts))

    def _window(self, clip: np.ndarray, caption: str | None, shared: int = 0) -> Features:
        """Features of a window but for its first `shared` frames: none, or frame 0."""
        encoded = self.tokenizer.encode(clip, caption or None)
        frames, height, width = clip.shape[:3]
        levels = []
        embedded = self.tokenizer.code_embeddings(encoded.batch)
        for values, (dt, ds) in zip(embedded, self.tokenizer.config.grids, strict=True):
            rows = -(-np.arange(shared, frames) // dt) - shared
            shown = values[0, shared : shared + rows[-1] + 1, : -(-height // ds), : -(-width // ds)]
            levels.append(LevelFeatures(np.asarray(shown, np.float32), rows, (ds, ds)))
        if not all(np.isfinite(level.values).all() for level in levels):
            raise BrokenItemError("the features of its tokens are not finite")
        tokens = sum(ids[shared:].size for ids in encoded.ids)
        return Features(tuple(levels), tokens * encoded.bits_per_token)

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """As `Extractor.texts`."""
        return np.asarray(self.tokenizer.text_features(list(captions)), np.float32)


def _unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


class _HashedTexts:
    """Texts as fixed random directions, the same for the same text."""

    def __init__(self, width: int, seed: int) -> None:
        self.width, self.seed = width, seed

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """As `Extractor.texts`."""
        rows = [_unit(_rng(self.seed, text.encode()), (self.width,)) for text in captions]
        return np.stack(rows) if rows else np.zeros((0, self.width), np.float32)


def _rng(seed: int, data: bytes) -> np.random.Generator:
    digest = hashlib.sha256(data).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, np.uint32).tolist()])


class OracleFeatures(_HashedTexts):
    """Ground truth as features: where a thing is, all levels hold its text feature."""

    checkpoint_hash = "oracle"

    def __init__(self, width: int = 256, levels: int = 4, seed: int = 0) -> None:
        super().__init__(width, seed)
        self.levels = levels

    def video(
        self, clip: np.ndarray, truth: TruthSource | None = None, caption: str | None = None
    ) -> Features:
        """As `Extractor.video`; a token that shows nothing is zero.

        Raises:
            ValueError: no truth is given.
        """
        if truth is None:
            raise ValueError("the oracle needs the truth")
        known = truth()
        vectors, masks = known.vectors, known.masks
        values = np.einsum("nthw,nd->thwd", masks.astype(np.float32), vectors)
        cell = -(-clip.shape[1] // masks.shape[2]), -(-clip.shape[2] // masks.shape[3])
        level = LevelFeatures(values.astype(np.float32), np.arange(len(clip)), cell)
        return Features((level,) * self.levels)


class RandomFeatures(_HashedTexts):
    """Features that know nothing: random directions, drawn from a hash of the clip's bytes."""

    checkpoint_hash = "random"

    def __init__(
        self, width: int = 64, levels: int = 4, cell: Cell = (8, 8), seed: int = 0
    ) -> None:
        super().__init__(width, seed)
        self.levels, self.cell = levels, cell

    def video(
        self, clip: np.ndarray, truth: TruthSource | None = None, caption: str | None = None
    ) -> Features:
        """As `Extractor.video`."""
        rng = _rng(self.seed, clip.tobytes())
        grid = (len(clip), -(-clip.shape[1] // self.cell[0]), -(-clip.shape[2] // self.cell[1]))
        rows = np.arange(len(clip))
        levels = (
            LevelFeatures(_unit(rng, (*grid, self.width)), rows, self.cell)
            for _ in range(self.levels)
        )
        return Features(tuple(levels))


def baseline_features(kind: str) -> Extractor:
    """The baseline `oracle` or `random`."""
    return OracleFeatures() if kind == "oracle" else RandomFeatures()


def normalized(values: np.ndarray) -> np.ndarray:
    """Vectors (..., d) at unit length; zero vectors stay zero."""
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.maximum(length, 1e-12)


def prompt_features(
    extractor: Extractor, names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """Unit text features (n, d) of class names: the mean over prompt templates ("a video of {}.").

    Raises:
        ValueError: a template without {}.
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"the template {template!r} holds no {{}}")
    texts = [template.format(name) for name in names for template in templates]
    vectors = normalized(extractor.texts(texts)).reshape(len(names), len(templates), -1)
    return normalized(vectors.mean(axis=1))


def parse_levels(text: str) -> list[int] | None:
    """Numbers of levels from 0 on, written as "1,4" (counted from 1); None for "all".

    Raises:
        UserError: written otherwise.
    """
    if text == "all":
        return None
    numbers = parse_numbers(text, "levels", "all, or numbers from 1 on as in 1,4", low=1)
    return [number - 1 for number in dict.fromkeys(numbers)]


def check_levels(extractor: Extractor, levels: Sequence[int] | None) -> None:
    """Refuse numbers of levels, from 0 on, that features do not have, before any is made.

    Raises:
        UserError: a level that does not exist.
    """
    _check_count(levels, extractor.levels)


def _check_count(levels: Sequence[int] | None, count: int) -> None:
    if levels and max(levels) >= count:
        raise UserError(f"there is no level {max(levels) + 1}, only {count}")


def level_means(features: Features, levels: Sequence[int] | None, grid: int = 1) -> np.ndarray:
    """Unit mean vectors of the chosen levels, (levels, grid * grid * d).

    Args:
        features: of a clip.
        levels: their numbers from 0 on; None: all.
        grid: means are taken over grid x grid parts of the picture and concatenated.

    Raises:
        UserError: a level that does not exist.
    """
    rows = []
    for level in chosen_levels(features, levels):
        values = level.values.mean(axis=0)
        parts = [
            cell.mean(axis=(0, 1))
            for row in np.array_split(values, min(grid, values.shape[0]), axis=0)
            for cell in np.array_split(row, min(grid, values.shape[1]), axis=1)
        ]
        # A level coarser than the grid repeats its cells, so that every clip gives one width.
        if len(parts) < grid * grid:
            parts = [values.mean(axis=(0, 1))] * (grid * grid)
        rows.append(normalized(np.concatenate(parts)))
    return np.stack(rows).astype(np.float32)


def contrasted(similarity: np.ndarray, contrast: bool = True) -> np.ndarray:
    """Similarities (..., n) with n texts, each less the mean over the texts; False: as they are."""
    return similarity - similarity.mean(axis=-1, keepdims=True) if contrast else similarity


def check_pooling(pooling: str) -> None:
    """Refuse a `--set pooling=` that is none of `POOLINGS`.

    Raises:
        UserError: it is none.
    """
    if pooling not in POOLINGS:
        raise UserError(f"--set pooling={pooling}: expected one of {', '.join(POOLINGS)}")


def _likeness(values: np.ndarray, queries: np.ndarray, pooling: str) -> np.ndarray:
    """Similarity of b sets of tokens (b, n, d) with texts (c, d), (b, c); not by their mean."""
    likeness = best_tokens if pooling == "tokens" else peak_cosines
    return np.asarray(likeness(jnp.asarray(values), jnp.asarray(queries)))


def frame_similarities(
    features: Features, queries: np.ndarray, pooling: str, levels: Sequence[int] | None
) -> np.ndarray:
    """Similarity of every frame of a clip with unit text vectors (n, d), float32 (frames, n).

    Args:
        features: of the clip.
        queries: the texts.
        pooling: of the tokens of a level that show the frame, one of `POOLINGS`.
        levels: their numbers from 0 on, whose similarities are averaged; None: all.

    Raises:
        UserError: a level that does not exist.
    """
    found = []
    for level in chosen_levels(features, levels):
        rows = level.values.reshape(len(level.values), -1, level.values.shape[-1])
        if pooling == "mean":
            alike = normalized(rows.mean(axis=1)) @ queries.T
        else:
            alike = _likeness(rows, queries, pooling)
        found.append(alike[level.rows])
    return np.asarray(sum(found) / len(found), np.float32)


def chosen_levels(features: Features, levels: Sequence[int] | None) -> list[LevelFeatures]:
    """The levels of these numbers, from 0 on; None: all.

    Raises:
        UserError: a level that does not exist.
    """
    count = len(features.levels)
    _check_count(levels, count)
    return [features.levels[n] for n in (range(count) if levels is None else levels)]


def pooled_similarity(
    features: Features, queries: np.ndarray, pooling: str, levels: Sequence[int] | None = None
) -> np.ndarray:
    """Similarity of a clip with unit text vectors (n, d), float32 (n,).

    Args:
        features: of the clip.
        queries: the texts.
        pooling: of the tokens of a level, one of `POOLINGS`; see `losses.text.similarity`.
        levels: their numbers from 0 on; None: all.

    Raises:
        UserError: a level that does not exist.
    """
    if pooling == "mean":
        pooled = normalized(level_means(features, levels).mean(axis=0))
        return (queries @ pooled).astype(np.float32)
    chosen = [
        level.values.reshape(1, -1, level.values.shape[-1])
        for level in chosen_levels(features, levels)
    ]
    found = [_likeness(values, queries, pooling)[0] for values in chosen]
    return np.asarray(sum(found) / len(found), np.float32)
