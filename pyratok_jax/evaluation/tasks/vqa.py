"""Questions about videos (MVBench): accuracy per task."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyratok_jax.data.video.files import read_image
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import even_indices, resized, sample_frames
from pyratok_jax.evaluation.data.mvbench import FRAMES_FPS, LAYOUT, Question, load_questions
from pyratok_jax.evaluation.models.answering import (
    MODES,
    Answerer,
    CosineAnswers,
    LanguageAnswers,
    OracleAnswers,
    RandomAnswers,
)
from pyratok_jax.evaluation.models.features import TokenizerFeatures, check_pooling, parse_levels
from pyratok_jax.evaluation.task import (
    BrokenItemError,
    Item,
    Metrics,
    Partial,
    Task,
    check_numbers,
    clip_facts,
)
from pyratok_jax.io import Json

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import Tokenizer

BLIND, COSINE = "none", "cosine"


def _frames(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg"))


def read_clip_of(question: Question, frames: int, side: int) -> np.ndarray:
    """The frames that a question is about, uint8 (frames, h, w, 3).

    Raises:
        BrokenItemError: the video is missing or its span is empty.
        BrokenVideoError: it cannot be read.
    """
    path = Path(question.video)
    if not question.frames:
        if not path.is_file():
            raise BrokenItemError(f"no such file: {path}")
        return sample_frames(str(path), frames, side, start=question.start, end=question.end)
    files = _frames(path) if path.is_dir() else []
    first = round((question.start or 0.0) * FRAMES_FPS)
    last = len(files) if question.end is None else max(round(question.end * FRAMES_FPS), first + 1)
    files = files[first:last]
    if not files:
        raise BrokenItemError(
            f"{path} holds no frame between {question.start} and {question.end} s"
        )
    chosen = [files[i] for i in even_indices(len(files), frames)]
    return np.stack([resized(read_image(str(file)), side) for file in chosen])


@dataclasses.dataclass
class VideoQuestions(Task[Answerer, Question]):
    """Multiple-choice questions about videos (MVBench, 20 tasks): the tokens of all levels go
    through a trained projector and stand before the question; the tokenizer's own language
    model scores the options or writes an answer that is parsed. Or, without a projector, the
    option that is most like the tokens. Accuracy per task.
    """

    name = "vqa"
    data_help = (
        "MVBench's folder with json/ and video/. Needs --set projector=DIR, a working folder of "
        "configs/vqa_projector.py; projector=none asks the language model without the video, "
        "projector=cosine takes the option that is most like the tokens (pooling, levels)"
    )
    columns = (("accuracy", "accuracy", 2), ("tasks", "tasks", 0))
    counted = "questions"

    projector: str = ""
    mode: str = "letter"
    tasks: str = ""
    frames: int = 17
    side: int = 256
    new_tokens: int = 24
    pooling: str = "mean"
    levels: str = "all"

    def wrap(self, tokenizer: "Tokenizer") -> Answerer:
        """The tokenizer's language model with the projector, or the tokens' likeness to words.

        Raises:
            UserError: no projector is named.
        """
        if self.projector == COSINE:
            extractor = TokenizerFeatures(tokenizer, self.frames)
            return CosineAnswers(extractor, self.pooling, parse_levels(self.levels))
        answers = functools.partial(
            LanguageAnswers, tokenizer, mode=self.mode, new_tokens=self.new_tokens
        )
        if self.projector == BLIND:
            return answers(None)
        if not self.projector:
            raise UserError(
                "the task vqa needs --set projector=DIR, trained with --config "
                "configs/vqa_projector.py; projector=none for the language model alone, or "
                "projector=cosine, for which nothing is trained"
            )
        from pyratok_jax.evaluation.models.answering import load_projector

        projector, digest = load_projector(self.projector, tokenizer)
        return answers(projector, projector_hash=digest)

    def baseline(self, kind: str) -> Answerer:
        """Oracle or random answers."""
        return OracleAnswers() if kind == "oracle" else RandomAnswers()

    def check(self) -> None:
        """Read the questions.

        Raises:
            UserError: an unknown mode or pooling, or numbers out of range.
        """
        check_numbers(self, "frames", "new_tokens", low=1)
        check_numbers(self, "side", low=0)
        check_pooling(self.pooling)
        if self.mode not in MODES:
            raise UserError(f"--set mode={self.mode}: expected one of {', '.join(MODES)}")
        self.items()

    def protocol(self) -> dict[str, Json]:
        """Settings, and which of the 20 tasks are there."""
        present = sorted({item.content.task for item in self.items()})
        missing = sorted(set(LAYOUT) - set(present))
        return self.settings() | {"split": "test", "present": present, "not_there": missing}

    def items(self) -> list[Item[Question]]:
        """One item per question."""
        names = [name for name in self.tasks.split(",") if name]
        return [Item(f"{q.task}/{q.number}", q) for q in load_questions(self.data, names)]

    def evaluate_item(self, model: Answerer, item: Item[Question]) -> Partial:
        """The answer to one question."""
        question = item.content
        clip = read_clip_of(question, self.frames, self.side)
        answer = model.answer(clip, question)
        return {
            "task": question.task,
            "right": answer.option == question.answer,
            "option": answer.option,
            "text": answer.text,
            "scores": list(answer.scores),
            "options": len(question.options),
            "clip": clip_facts(clip, answer.bits),
        }

    def aggregate(self, partials: Mapping[str, Partial]) -> Metrics:
        """Accuracy in percent: mean over tasks, over questions, and of every task.

        An answer in which no option can be made out is wrong.
        """
        by_task = defaultdict(list)
        for partial in partials.values():
            by_task[partial["task"]].append(partial["right"])
        table = {task: 100 * float(np.mean(rights)) for task, rights in by_task.items()}
        rows = list(partials.values())
        return {
            "accuracy": float(np.mean(list(table.values()))),
            "accuracy_over_questions": 100 * float(np.mean([p["right"] for p in rows])),
            "tasks": len(table),
            "by_task": table,
            "questions": len(rows),
            "without_an_option": sum(p["option"] is None for p in rows),
            "chance": 100 * float(np.mean([1 / p["options"] for p in rows])),
        }
