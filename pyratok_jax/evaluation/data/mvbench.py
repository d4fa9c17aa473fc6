"""MVBench: its 20 tasks and their files, its questions, and answers parsed from free text."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import FiniteFloat

from pyratok_jax.errors import UserError, quoted
from pyratok_jax.io import Json
from pyratok_jax.io.documents import checked, read_json

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class Part:
    """One task of the benchmark.

    Attributes:
        folder: of its videos, below `video/`.
        bounded: its questions ask about seconds `start` to `end` of the video.
        frames: its videos are folders of JPEG files, taken at 3 frames per second.
    """

    folder: str
    bounded: bool = False
    frames: bool = False


# By the name of the task's JSON file.
LAYOUT: dict[str, Part] = {
    "action_sequence": Part("star/Charades_v1_480", bounded=True),
    "action_prediction": Part("star/Charades_v1_480", bounded=True),
    "action_antonym": Part("ssv2_video"),
    "fine_grained_action": Part("Moments_in_Time_Raw/videos"),
    "unexpected_action": Part("FunQA_test/test"),
    "object_existence": Part("clevrer/video_validation"),
    "object_interaction": Part("star/Charades_v1_480", bounded=True),
    "object_shuffle": Part("perception/videos"),
    "moving_direction": Part("clevrer/video_validation"),
    "action_localization": Part("sta/sta_video", bounded=True),
    "scene_transition": Part("scene_qa/video"),
    "action_count": Part("perception/videos"),
    "moving_count": Part("clevrer/video_validation"),
    "moving_attribute": Part("clevrer/video_validation"),
    "state_change": Part("perception/videos"),
    "fine_grained_pose": Part("nturgbd"),
    "character_order": Part("perception/videos"),
    "egocentric_navigation": Part("vlnqa"),
    "episodic_reasoning": Part("tvqa/frames_fps3_hq", bounded=True, frames=True),
    "counterfactual_inference": Part("clevrer/video_validation"),
}
FRAMES_FPS = 3.0


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        task, number: of MVBench, and of the question within the task.
        video: file, or folder of frames.
        answer: number of the right option.
        start, end: the seconds that it asks about; None: from the start, to the end.
        frames: whether `video` is a folder of frames at `FRAMES_FPS`.
    """

    task: str
    number: int
    video: str
    question: str
    options: tuple[str, ...]
    answer: int
    start: float | None = None
    end: float | None = None
    frames: bool = False


def load_questions(folder: str, tasks: Sequence[str] = ()) -> list[Question]:
    """All questions below a folder with `json/` and `video/`.

    Args:
        folder: the benchmark's root.
        tasks: names of some tasks; empty: all whose JSON file is there.

    Raises:
        UserError: unknown or missing tasks, or a malformed file.
    """
    unknown = sorted(set(tasks) - set(LAYOUT))
    if unknown:
        raise UserError(f"MVBench has no task {unknown[0]}; expected some of {', '.join(LAYOUT)}")
    root = Path(folder)
    questions: list[Question] = []
    for name in tasks or LAYOUT:
        path = root / "json" / f"{name}.json"
        if path.exists():
            questions += _read(root, path, name)
        elif tasks:
            raise UserError(f"{path} does not exist; expected MVBench's json/ and video/ folders")
    if not questions:
        raise UserError(f"{root / 'json'} holds no task of MVBench, such as action_count.json")
    return questions


def _read(root: Path, path: Path, name: str) -> list[Question]:
    rows = read_json(path, list[Json], advice="expected a list of questions")
    return [_question(root, path, name, number, row) for number, row in enumerate(rows)]


@dataclasses.dataclass(frozen=True)
class _Row:
    """A question as the file has it."""

    video: str
    question: str
    candidates: tuple[str | int | float, ...]
    answer: str | int | float


@dataclasses.dataclass(frozen=True)
class _BoundedRow(_Row):
    """A question about a part of its video, in seconds."""

    start: FiniteFloat
    end: FiniteFloat


def _question(root: Path, path: Path, name: str, number: int, values: Json) -> Question:
    part, where = LAYOUT[name], f"{path}, question {number}"
    advice = "expected video, question, candidates and, among them, answer" + (
        ", start and end" if part.bounded else ""
    )
    row: _Row = checked(values, _BoundedRow if part.bounded else _Row, where, advice)
    options = tuple(str(option) for option in row.candidates)
    if str(row.answer) not in options:
        raise UserError(f"{where}: answer {quoted(row.answer)} is no candidate; {advice}")
    answer, video = options.index(str(row.answer)), str(root / "video" / part.folder / row.video)
    bounded = row if isinstance(row, _BoundedRow) else None
    return Question(
        name, number, video, row.question, options, answer,
        start=bounded.start if bounded else None, end=bounded.end if bounded else None,
        frames=part.frames,
    )  # fmt: skip


def prompt(question: Question) -> str:
    """The text that follows the video: the question, its options by letter, what to answer."""
    lines = [f"Question: {question.question}", "Options:"]
    lines += [f"({LETTERS[i]}) {option}" for i, option in enumerate(question.options)]
    return "\n".join([*lines, "Answer with the letter of the best option.", "Answer: ("])


def open_prompt(question: str) -> str:
    """The text that follows the video where any words may answer."""
    return f"Question: {question}\nAnswer:"


def parse_answer(text: str, options: Sequence[str]) -> int | None:
    """The option that a free answer names, or None.

    Tried in this order: the last letter after "answer"; a letter in brackets; a letter on its own
    at the beginning; a letter after "option" or "choice"; the words of exactly one option (or of
    the longest one, where one contains another); a single capital letter anywhere.
    """
    letters = LETTERS[: len(options)]
    text = text.strip()
    stated = re.findall(rf"(?i:answer)(?i:\s+is)?\s*[:=]?\s*[(\[]?\s*([{letters}])\b(?!')", text)
    if stated:  # The last: what comes before may be weighed and dropped.
        return letters.index(stated[-1])
    patterns = (
        rf"[(\[]\s*([{letters}])\s*[)\]]",
        rf"^([{letters}])\s*(?:[).:,\]]|$)",
        rf"(?i:option|choice)(?i:\s+is)?\s*[:=]?\s*\(?([{letters}])\b",
    )
    for pattern in patterns:
        if match := re.search(pattern, text):
            return letters.index(match.group(1))
    named = _named(text, options)
    if named:
        return named[0] if len(named) == 1 else None
    lower = re.match(rf"(?i)^([{letters}])\s*(?:[).:,\]]|$)", text)
    if lower:
        return letters.index(lower.group(1).upper())
    alone = re.findall(rf"(?<![A-Za-z'])([{letters}])(?![A-Za-z'])", text)
    # "A" is a word too, where another word follows it.
    articles = len(re.findall(r"(?<![A-Za-z'])A\s+[a-z]", text))
    if alone.count("A") == articles:
        alone = [letter for letter in alone if letter != "A"]
    return letters.index(alone[0]) if len(set(alone)) == 1 else None


def _named(text: str, options: Sequence[str]) -> list[int]:
    """The options whose words occur in the text, less those within the words of a longer one."""
    plain = f" {_words(text)} "
    words = [f" {_words(option)} " for option in options]
    hits = [i for i, option in enumerate(words) if option.strip() and option in plain]
    return [i for i in hits if not any(words[i] in words[j] and i != j for j in hits)]


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
