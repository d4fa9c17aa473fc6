"""Labelled videos: a folder per class, lists as UCF-101's, tables as Kinetics'; labels as words.

For a text encoder: class names as words, prompt templates, semantic units of a prompt.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyratok_jax.data.video.files import VIDEO_SUFFIXES
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.data.clips import sample_frames
from pyratok_jax.evaluation.task import BrokenItemError
from pyratok_jax.io.documents import csv_rows, read_lines, read_text, with_suffix_of


class Labelled(NamedTuple):
    """A video's name, its file (which may be missing), its label, and its span in seconds."""

    name: str
    path: Path
    label: str
    start: float | None = None
    end: float | None = None


def load_labelled(folder: Path, table: str = "") -> list[Labelled]:
    """All labelled videos.

    Args:
        folder: LABEL/VIDEO below it, or all videos in it where a table is given.
        table: a list with lines "LABEL/VIDEO [NUMBER]" (UCF-101's testlist), or a CSV file with
            the columns label, youtube_id, time_start, time_end (Kinetics; the files are called
            ID_START_END, as its downloaders do, or ID) or label, path.

    Raises:
        UserError: nothing is there, or the table is malformed.
    """
    if not folder.is_dir():
        raise UserError(f"--data {folder} is no folder; expected a folder per class with videos")
    if not table:
        rows = _by_folder(folder)
    elif table.lower().endswith(".csv"):
        rows = _kinetics(folder, Path(table))
    else:
        rows = _list(folder, Path(table))
    if not rows:
        raise UserError(f"{table or folder} names no labelled video (expected LABEL/VIDEO)")
    return rows


def _by_folder(folder: Path) -> list[Labelled]:
    rows = []
    for label in sorted(path for path in folder.iterdir() if path.is_dir()):
        for file in sorted(label.rglob("*")):
            if file.suffix.lower() in VIDEO_SUFFIXES:
                rows.append(Labelled(str(file.relative_to(folder)), file, label.name))
    return rows


def _list(folder: Path, table: Path) -> list[Labelled]:
    rows = []
    for number, line in enumerate(read_lines(table), start=1):
        name = line.rsplit(" ", 1)[0] if line.rsplit(" ", 1)[-1].isdigit() else line
        if "/" not in name:
            raise UserError(f"{table}, line {number}: expected LABEL/VIDEO, got {line[:80]}")
        rows.append(Labelled(name, folder / name, name.split("/")[-2]))
    return rows


def _kinetics(folder: Path, table: Path) -> list[Labelled]:
    rows = []
    try:
        table_rows = list(csv_rows(read_text(table)))
    except ValueError as error:
        raise UserError(f"{table}: {error}") from error
    for number, row in enumerate(table_rows, start=2):
        try:
            label = row["label"]
            if "path" in row:
                rows.append(Labelled(row["path"], folder / row["path"], label))
                continue
            name = row["youtube_id"]
            start, end = float(row["time_start"]), float(row["time_end"])
            if not 0 <= start < end < math.inf:
                raise ValueError(f"{start} to {end} s is no span of time")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{table}, line {number}: expected the columns label and path, or label, "
                f"youtube_id, time_start and time_end ({error})"
            ) from error
        rows.append(_clip(folder, label, name, start, end))
    return rows


def _clip(folder: Path, label: str, name: str, start: float, end: float) -> Labelled:
    """A trimmed file where there is one, else the whole video and the span within it."""
    trimmed = f"{name}_{round(start):06d}_{round(end):06d}"
    for place in (folder / label, folder / label.replace(" ", "_"), folder):
        if (found := with_suffix_of(place, trimmed, VIDEO_SUFFIXES)) is not None:
            return Labelled(trimmed, found, label)
        if (found := with_suffix_of(place, name, VIDEO_SUFFIXES)) is not None:
            return Labelled(trimmed, found, label, start, end)
    return Labelled(trimmed, folder / label / f"{trimmed}.mp4", label)


def load_classes(file: str, rows: Sequence[Labelled]) -> list[str]:
    """Class names, one per line of a file (a leading number is dropped); or those that occur.

    Raises:
        UserError: a video has a label that the file does not have.
    """
    found = sorted({row.label for row in rows})
    if not file:
        return found
    names = []
    for line in read_lines(file):
        head, _, rest = line.partition(" ")
        names.append(rest if head.isdigit() and rest else line)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise UserError(f"{file} lacks {len(unknown)} labels of the data, first: {unknown[0]}")
    return names


def read_labelled(row: Labelled, frames: int, side: int) -> np.ndarray:
    """The sampled frames of a labelled video.

    Raises:
        BrokenItemError: its file is missing.
    """
    if not row.path.is_file():
        raise BrokenItemError(f"no such file: {row.path}")
    return sample_frames(str(row.path), frames, side, start=row.start, end=row.end)


# Function words, and verbs that captions use without meaning a thing.
_WORDS = """
a an the this that these those some any each every no its his her their our my your it he she
they we i you and or but nor so as if then than while when where which who whom whose what how
is are was were be been being am do does did has have had having will would can could may might
must should shall not of in on at by for from to into onto over under above below behind before
after near beside between among through across along around against with without within about up
down out off away toward towards there here very more most much many few one two three several
another other others both all own same too just also only still again once moves moving move
stands standing stand sits sitting sit walks walking walk runs running run lies lying goes going
comes coming looks looking shows showing shown seen wearing wears holding holds video videos
clip photo picture image film scene left right
"""
_STOP = frozenset(_WORDS.split())


def spoken(label: str) -> str:
    """A class name as words: "BaseballPitch" and "baseball_pitch" become "baseball pitch"."""
    if " " not in label:
        label = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", label)
        label = label.replace("_", " ").lower()
    return " ".join(label.split())


def parse_templates(text: str) -> list[str]:
    """Prompt templates, written with | between them; each holds {} once.

    Raises:
        UserError: one does not.
    """
    templates = [part.strip() for part in text.split("|")]
    for template in templates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise UserError(
                f"--set templates={text}: {template!r} must hold {{}} once, for the class name"
            )
    return templates


def semantic_units(prompt: str) -> list[str]:
    """Phrases of content words in the order of the prompt, each once.

    A phrase ends at a function word, a common verb or punctuation: "a red circle moves to the
    right and a dog" gives "red circle" and "dog".
    """
    units: list[str] = []
    for part in re.split(r"[^\w\s'-]+", prompt.lower()):
        phrase: list[str] = []
        for word in [*part.split(), ""]:
            if word and word not in _STOP:
                phrase.append(word)
            elif phrase:
                units.append(" ".join(phrase))
                phrase = []
    return list(dict.fromkeys(units))


def category_of(unit: str, categories: dict[int, str]) -> int | None:
    """The category that a unit names: the same words, or a category's words within the unit's."""
    words = _words(unit)
    best: tuple[int, int] | None = None
    for number, name in categories.items():
        inside = _words(name)
        if inside == words:
            return number
        if inside and set(inside) <= set(words) and (best is None or len(inside) > best[0]):
            best = len(inside), number
    return None if best is None else best[1]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
