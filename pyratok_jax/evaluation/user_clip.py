"""What a tokenizer says about one clip of a user's own: masks, moments, answers, attention.

The measures are those of the published benchmarks' tasks (`tasks.segmentation`,
`tasks.localization`, `tasks.vqa`), with free text in place of an annotated set's categories.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, UInt8

from pyratok_jax.data.video.files import (
    VideoSource,
    clock_of,
    is_image,
    iter_span,
    read_image,
)
from pyratok_jax.data.video.timeline import resampled
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import resized
from pyratok_jax.evaluation.data.mvbench import LETTERS, Question
from pyratok_jax.evaluation.models.answering import (
    LanguageAnswers,
    choice_similarities,
    load_projector,
)
from pyratok_jax.evaluation.models.features import (
    Features,
    TokenizerFeatures,
    contrasted,
    frame_similarities,
    normalized,
)
from pyratok_jax.evaluation.vision.masks import (
    FieldSettings,
    log_odds,
    similarity_maps,
    solve_field,
    to_pixels,
    unit_masks,
)
from pyratok_jax.evaluation.vision.temporal_detection import (
    ProposalSettings,
    Run,
    propose,
    window_means,
)
from pyratok_jax.models.pyratok.model import attention_maps
from pyratok_jax.models.pyratok.quantizers.lapq import LaPQ
from pyratok_jax.tokenizer import to_model_range

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class UserClip:
    """Frames of a video, and how many of them make a second; `more`: frames were left out."""

    frames: UInt8[np.ndarray, "t h w 3"]
    fps: float
    more: bool


def read_user_clip(path: VideoSource, *, frames: int, side: int, fps: float = 0.0) -> UserClip:
    """The first frames of a video or picture.

    Args:
        path: a file.
        frames: the most to read.
        side: of the shorter side in pixels, at most; 0: as it is.
        fps: frames per second to take; 0: all.

    Raises:
        BrokenVideoError: it cannot be read.
    """
    if is_image(path):
        return UserClip(resized(read_image(path), side)[None], 1.0, False)
    rate, margin = clock_of(path)
    fps = min(fps, rate) if fps else rate
    taken: list[np.ndarray] = []
    for frame in resampled(iter_span(path, threads=0), fps, margin, 1 / rate):
        if len(taken) == frames:
            return UserClip(np.stack(taken), fps, True)
        taken.append(resized(frame, side))
    return UserClip(np.stack(taken), fps, False)


@dataclasses.dataclass(frozen=True)
class Segmented:
    """Masks of n phrases, and the cosine of every pixel's token with each phrase."""

    masks: Bool[np.ndarray, "n t h w"]
    similarity: Float[np.ndarray, "n t h w"]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Where a sentence is true: intervals, and windowed similarity of every frame."""

    runs: tuple[Run, ...]
    scores: Float[np.ndarray, "t"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The option that was chosen, a score for each, and what the scores are."""

    option: int
    scores: tuple[float, ...]
    method: str


class ClipQuestions:
    """One clip as a tokenizer sees it, without a caption, encoded when first needed.

    Raises:
        UserError: the tokenizer has no language model or no code embedding.
    """

    def __init__(self, tokenizer: "Tokenizer", clip: UserClip, window: int) -> None:
        if tokenizer.text is None or tokenizer.alignment is None:
            raise UserError(
                "this checkpoint has no language model or no code embedding: its tokens cannot be "
                "compared with words; take one that was trained with text"
            )
        self.tokenizer, self.clip, self.window = tokenizer, clip, window

    @functools.cached_property
    def features(self) -> Features:
        """Code features of the clip, for what is where."""
        return TokenizerFeatures(self.tokenizer, self.window).video(self.clip.frames)

    @functools.cached_property
    def moving(self) -> Features:
        """The same without the still pictures that windows begin with, for what happens when."""
        extractor = TokenizerFeatures(self.tokenizer, self.window, overlap=True)
        if len(self.clip.frames) <= extractor.window:
            return self.features
        return extractor.video(self.clip.frames)

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Unit features of texts."""
        return normalized(np.asarray(self.tokenizer.text_features(list(texts)), np.float32))

    def segment(
        self,
        phrases: Sequence[str],
        settings: FieldSettings,
        level: int = 0,
        *,
        contrast: bool = False,
    ) -> Segmented:
        """A mask per phrase; masks of different phrases may overlap.

        Args:
            phrases: what is looked for.
            settings: of the field over pixels, solved for the frames of one window at a time.
            level: whose tokens are compared, from 0; the paper takes the last.
            contrast: of similarities less their mean over all phrases.

        Raises:
            UserError: a level that does not exist.
        """
        tokens = self.features.levels[self._level(level)]
        queries = self.texts([f"a video of {phrase}." for phrase in phrases])
        size = self.clip.frames.shape[1:3]
        maps = similarity_maps(tokens, queries, contrast=contrast)
        maps = to_pixels(maps, tokens, (size[0], size[1]))
        odds = log_odds(maps, settings)
        parts = [
            solve_field(self.clip.frames[i : i + self.window], odds[i : i + self.window], settings)
            for i in range(0, len(odds), self.window)
        ]
        return Segmented(unit_masks(np.concatenate(parts)), np.moveaxis(maps, -1, 0))

    def find(
        self,
        sentences: Sequence[str],
        settings: ProposalSettings,
        level: int = 0,
        *,
        pooling: str = "peaks",
        contrast: bool = False,
    ) -> list[Moments]:
        """Intervals in which each sentence holds.

        Args:
            sentences: what is looked for.
            settings: how intervals are proposed.
            level: whose tokens are compared, from 0; the paper takes the first.
            pooling: of a frame's tokens, one of `features.POOLINGS`.
            contrast: of similarities less their mean over all sentences.

        Raises:
            UserError: a level that does not exist.
        """
        queries, level = self.texts(sentences), self._level(level)
        scores = frame_similarities(self.moving, queries, pooling, [level])
        return [
            Moments(tuple(propose(row, settings)), window_means(row, settings.window_frames))
            for row in contrasted(scores, contrast).T
        ]

    def choose(
        self, question: str, options: Sequence[str], projector: str = "",
        *, pooling: str = "peaks", level: int | None = None,
    ) -> Choice:  # fmt: skip
        """The best of some options as an answer.

        With a projector's working folder the tokenizer's language model reads the tokens and the
        question; without one, each option is compared with the clip as a sentence, by the tokens
        of one level (from 0; None: all), pooled as `features.POOLINGS` say.

        Raises:
            UserError: fewer than two options or too many, an unfit projector, or no such level.
        """
        if not 2 <= len(options) <= len(LETTERS):
            raise UserError(f"{len(options)} choices: expected 2 to {len(LETTERS)} of them")
        if projector:
            network, digest = load_projector(projector, self.tokenizer)
            answers = LanguageAnswers(
                self.tokenizer, network, mode="likelihood", projector_hash=digest
            )
            asked = Question("user", 0, "", question, tuple(options), -1)
            scores = answers.answer(self.clip.frames, asked).scores
            return Choice(int(np.argmax(scores)), scores, "log-likelihood per token")
        levels = None if level is None else [self._level(level)]
        similarity = choice_similarities(
            self.features, self.texts, question, options, pooling, levels
        )
        return Choice(int(np.argmax(similarity)), tuple(similarity.tolist()), "cosine")

    def write(self, question: str, projector: str) -> str:
        """What the tokenizer's language model, which reads the tokens, answers in its own words.

        Raises:
            UserError: an unfit projector, or no language model.
        """
        network, digest = load_projector(projector, self.tokenizer)
        answers = LanguageAnswers(self.tokenizer, network, mode="generate", projector_hash=digest)
        return answers.write(self.clip.frames, question)

    def attention(self, caption: str, level: int) -> tuple[list[str], Float[np.ndarray, "n t h w"]]:
        """How much every pixel's token attends to each of the caption's n pieces of words.

        Args:
            caption: the clip is encoded with it.
            level: from 0.

        Raises:
            UserError: a level that does not exist, or levels that do not attend to text.
        """
        level = self._level(level)
        quantizer = self.tokenizer.model.quantizer
        if not (
            isinstance(quantizer, LaPQ)
            and self.tokenizer.config.text_guidance
            and all(block.attention is not None for block in quantizer.blocks)
        ):
            raise UserError("this checkpoint's levels do not attend to text: no attention maps")
        text, words = self.tokenizer.embed([caption]), self.tokenizer.captions
        assert text is not None and words is not None
        ids, mask = words([caption])
        count = int(mask.sum())
        pieces = [words.tokenizer.decode([int(i)]).strip() for i in ids[0, :count]]
        run = nnx.jit(attention_maps)
        dt, ds = self.tokenizer.config.grids[level]
        parts = []
        for start in range(0, len(self.clip.frames), self.window):
            frames = self.clip.frames[start : start + self.window]
            t, h, w = frames.shape[:3]
            padded = self.tokenizer.padding(t, h, w).pad(frames[None])
            found = run(self.tokenizer.model, to_model_range(jnp.asarray(padded)), text)[level]
            rows = -(-np.arange(t) // dt)
            maps = np.asarray(found[0, ..., :count])[rows].repeat(ds, axis=1).repeat(ds, axis=2)
            parts.append(maps[:, :h, :w])
        return pieces, np.moveaxis(np.concatenate(parts), -1, 0)

    def _level(self, level: int) -> int:
        levels = len(self.tokenizer.config.grids)
        if not -levels <= level < levels:
            raise UserError(f"there is no level {level + 1}, only {levels}")
        return level % levels
