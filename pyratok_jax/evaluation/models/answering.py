"""Who answers questions about a clip: a language model that sees its tokens, or a baseline.

The language model sees tokens through a trained projector of codes, read from its working folder.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from pyratok_jax.checkpoints.partition import restore_module
from pyratok_jax.checkpoints.verification import weights_hash
from pyratok_jax.checkpoints.working_folder import newest_step, read_parameters
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.mvbench import LETTERS, Question, open_prompt, parse_answer, prompt
from pyratok_jax.evaluation.models.features import (
    Extractor,
    Features,
    normalized,
    pooled_similarity,
)
from pyratok_jax.io import Json
from pyratok_jax.io.documents import read_json, refusing
from pyratok_jax.models.language.generate import generate
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.models.projector import Projector
from pyratok_jax.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import Tokenizer

MODES = ("letter", "likelihood", "generate")
# Prompts are padded to a multiple of this, so that few lengths are compiled.
_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Answer:
    """An option's number (None: no option could be made out), and what it was taken from."""

    option: int | None
    text: str = ""
    scores: tuple[float, ...] = ()
    bits: float | None = None


class Answerer(Protocol):
    """Answers multiple-choice questions about clips."""

    checkpoint_hash: str

    def answer(self, clip: np.ndarray, question: Question) -> Answer:
        """The answer to one question about a clip, uint8 (t, h, w, 3)."""
        ...


class OracleAnswers:
    """Says the right option, in words that have to be parsed."""

    checkpoint_hash = "oracle"

    def answer(self, clip: np.ndarray, question: Question) -> Answer:
        """As `Answerer.answer`."""
        text = f"The answer is ({LETTERS[question.answer]})."
        return Answer(parse_answer(text, question.options), text)


class RandomAnswers:
    """Picks any option, the same one in every run, whatever the paths of the videos."""

    checkpoint_hash = "random"

    def answer(self, clip: np.ndarray, question: Question) -> Answer:
        """As `Answerer.answer`."""
        named = dataclasses.replace(question, video=Path(question.video).name)
        digest = hashlib.sha256(repr(dataclasses.astuple(named)).encode()).digest()
        return Answer(int.from_bytes(digest[:8], "big") % len(question.options))


def choice_similarities(
    features: Features,
    texts: Callable[[Sequence[str]], np.ndarray],
    question: str,
    options: Sequence[str],
    pooling: str,
    levels: Sequence[int] | None = None,
) -> Float[np.ndarray, " n"]:
    """How like a clip's tokens each option is, said as a sentence after the question.

    What the options have in common, the question, says nothing about which is right: their mean is
    taken off.

    Args:
        features: of the clip.
        texts: gives the features of sentences.
        question: what is asked.
        options: answers.
        pooling, levels: see `features.pooled_similarity`.

    Raises:
        UserError: a level that does not exist.
    """
    said = [f"{question} {option}." for option in options]
    vectors = normalized(np.asarray(texts(said), np.float32))
    queries = normalized(vectors - vectors.mean(axis=0))
    return pooled_similarity(features, queries, pooling, levels)


class CosineAnswers:
    """The option that is most like the tokens (`choice_similarities`): nothing is trained for it.

    Args:
        extractor: of features of clips and texts.
        pooling: of a level's tokens.
        levels: from 0; None: all.
    """

    def __init__(
        self, extractor: Extractor, pooling: str, levels: Sequence[int] | None = None
    ) -> None:
        self.extractor, self.pooling, self.levels = extractor, pooling, levels
        named = f"{extractor.checkpoint_hash}|cosine|{pooling}|{levels}"
        self.checkpoint_hash = hashlib.sha256(named.encode()).hexdigest()

    def answer(self, clip: np.ndarray, question: Question) -> Answer:
        """As `Answerer.answer`."""
        features = self.extractor.video(clip)
        found = choice_similarities(
            features, self.extractor.texts, question.question, question.options,
            self.pooling, self.levels,
        )  # fmt: skip
        return Answer(int(np.argmax(found)), scores=tuple(found.tolist()), bits=features.bits)


@nnx.jit
def _last_logits(
    model: LanguageModel, x: Float[Array, "b l d"], mask: Bool[Array, "b l"]
) -> Float[Array, "b v"]:
    """Logits of the token after each row's last one."""
    hidden = model(x, mask).hidden
    last = jnp.sum(mask, axis=1) - 1
    return model.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])


@nnx.jit
def _log_likelihoods(
    model: LanguageModel,
    x: Float[Array, "b l d"],
    mask: Bool[Array, "b l"],
    ids: Int[Array, "b l"],
    counted: Bool[Array, "b l"],
) -> Float[Array, "b"]:
    """Mean log-probability (b,) of the tokens where `counted`, each given those before it."""
    logs = jax.nn.log_softmax(model.logits(model(x, mask).hidden[:, :-1]), axis=-1)
    values = jnp.take_along_axis(logs, ids[:, 1:, None], axis=-1)[..., 0]
    counted = counted[:, 1:]
    return jnp.sum(values * counted, axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1)


@nnx.jit
def _project(
    projector: Projector, levels: tuple[Float[Array, "b _t _h _w d"], ...]
) -> Float[Array, "b n e"]:
    """Embeddings that the language model reads, of all levels' code embeddings."""
    return projector(levels)


class LanguageAnswers:
    """The tokenizer's own language model, shown the projected tokens before the question.

    Modes: `letter` compares the probabilities of the options' letters as the next token,
    `likelihood` the mean log-probability of the options' words, `generate` parses what it writes.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        projector: Projector | None,
        *,
        mode: str = "letter",
        new_tokens: int = 24,
        projector_hash: str = "",
    ) -> None:
        if tokenizer.text is None or tokenizer.captions is None:
            raise UserError("this checkpoint has no language model: it cannot answer questions")
        if projector is not None and tokenizer.alignment is None:
            raise UserError("this checkpoint has no code embedding: nothing can be projected")
        self.tokenizer, self.projector, self.mode = tokenizer, projector, mode
        self.new_tokens = new_tokens
        self.model: LanguageModel = tokenizer.text.language_model
        self.words = tokenizer.captions.tokenizer
        digest = hashlib.sha256(f"{tokenizer.checkpoint_hash}|{projector_hash}".encode())
        self.checkpoint_hash = digest.hexdigest()

    def answer(self, clip: np.ndarray, question: Question) -> Answer:
        """As `Answerer.answer`."""
        visual, bits = self._visual(clip)
        ids = self._ids(prompt(question))
        if self.mode == "letter":
            answer = self._by_letter(visual, ids, question)
        elif self.mode == "likelihood":
            answer = self._by_likelihood(visual, ids, question)
        else:
            answer = self._by_writing(visual, ids, question)
        return dataclasses.replace(answer, bits=bits)

    def write(self, clip: UInt8[np.ndarray, "t h w 3"], question: str) -> str:
        """An answer in the model's own words, its first line."""
        visual, _ = self._visual(clip)
        written = self._written(visual, self._ids(open_prompt(question)))
        return written.strip().partition("\n")[0].strip()

    def _visual(self, clip: np.ndarray) -> tuple[np.ndarray, float | None]:
        """Projected tokens (n, d) of a clip, and the bits of its tokens; none without projector."""
        if self.projector is None:
            return np.zeros((0, self.model.config.width), np.float32), None
        encoded = self.tokenizer.encode(clip)
        levels = tuple(jnp.asarray(x) for x in self.tokenizer.code_embeddings(encoded.batch))
        return np.asarray(_project(self.projector, levels))[0], encoded.bits

    def _ids(self, text: str, start: bool = True) -> list[int]:
        return list(self.words(text, add_special_tokens=start)["input_ids"])

    def _batch(self, visual: np.ndarray, rows: list[list[int]]) -> tuple[Array, Array, np.ndarray]:
        """Embeddings, mask and token ids (0 at projected tokens) of prompts, padded at the end."""
        n = len(visual)
        length = -(-(n + max(map(len, rows))) // _BLOCK) * _BLOCK
        ids = np.zeros((len(rows), length), np.int32)
        mask = np.zeros((len(rows), length), bool)
        for row, tokens in enumerate(rows):
            ids[row, n : n + len(tokens)] = tokens
            mask[row, : n + len(tokens)] = True
        x = self.model.embed(jnp.asarray(ids)).at[:, :n].set(jnp.asarray(visual, self.model.dtype))
        return x, jnp.asarray(mask), ids

    def _by_letter(self, visual: np.ndarray, ids: list[int], question: Question) -> Answer:
        x, mask, _ = self._batch(visual, [ids])
        logits = np.asarray(_last_logits(self.model, x, mask))[0]
        letters = [
            self._ids(letter, start=False)[-1] for letter in LETTERS[: len(question.options)]
        ]
        scores = tuple(float(logits[letter]) for letter in letters)
        return Answer(int(np.argmax(scores)), scores=scores)

    def _by_likelihood(self, visual: np.ndarray, ids: list[int], question: Question) -> Answer:
        endings = [
            self._ids(f"{LETTERS[i]}) {option}", start=False)
            for i, option in enumerate(question.options)
        ]
        x, mask, tokens = self._batch(visual, [ids + ending for ending in endings])
        first = len(visual) + len(ids)
        counted = np.asarray(mask) & (np.arange(tokens.shape[1]) >= first)
        found = _log_likelihoods(self.model, x, mask, jnp.asarray(tokens), jnp.asarray(counted))
        scores = tuple(float(s) for s in np.asarray(found))
        return Answer(int(np.argmax(scores)), scores=scores)

    def _by_writing(self, visual: np.ndarray, ids: list[int], question: Question) -> Answer:
        # The prompt ends with an opened bracket.
        text = "(" + self._written(visual, ids)
        return Answer(parse_answer(text, question.options), text)

    def _written(self, visual: np.ndarray, ids: list[int]) -> str:
        x, mask, _ = self._batch(visual, [ids])
        written = generate(self.model, x, mask, new_tokens=self.new_tokens)
        tokens = np.asarray(written.tokens)[0, : int(written.lengths[0])]
        return str(self.words.decode(tokens.tolist(), skip_special_tokens=True))


FORMAT = "pyratok-jax-projector-1"


DESCRIPTION = "projector.json"


@dataclasses.dataclass(frozen=True)
class _Description:
    """What `DESCRIPTION` holds: the projector's sizes, and the hash of its tokenizer."""

    projector: dict[str, Json]
    tokenizer: str


def make_projector(arguments: Mapping[str, Json], rngs: nnx.Rngs) -> Projector:
    """A projector of stored sizes."""
    return Projector(**{**arguments, "most": tuple(arguments["most"])}, rngs=rngs)


def load_projector(folder: str | Path, tokenizer: Tokenizer) -> tuple[Projector, str]:
    """The projector in a working folder, and the hash of its weights.

    Raises:
        UserError: there is none, or it was trained for another tokenizer.
    """
    path = Path(folder) / DESCRIPTION
    if not path.exists():
        raise UserError(
            f"{path} does not exist; train a projector with --config configs/vqa_projector.py"
        )
    record = read_json(path, _Description, advice="it is no description of a projector")
    arguments, owner = record.projector, record.tokenizer
    with refusing(f"{path}: projector"):
        nnx.eval_shape(lambda: make_projector(arguments, nnx.Rngs(0)))
    if owner != tokenizer.checkpoint_hash:
        raise UserError(
            f"the projector in {folder} was trained for the tokenizer {owner[:12]}, not for "
            f"{tokenizer.checkpoint_hash[:12]}; train one for this checkpoint"
        )
    step = newest_step(Path(folder))
    if step is None:
        raise UserError(f"{folder} holds no checkpoint of a projector yet")
    stored = read_parameters(Path(folder), step)
    projector, values = restore_module(
        lambda: make_projector(arguments, nnx.Rngs(0)),
        "projector",
        stored,
        f"{folder}: its checkpoint does not fit its {DESCRIPTION}",
    )
    return projector, weights_hash({k: np.asarray(v) for k, v in values.items()})
