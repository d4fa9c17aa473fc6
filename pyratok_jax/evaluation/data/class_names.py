"""Words for a text encoder: class names as words, prompt templates, semantic units of a prompt."""

import re

from pyratok_jax.errors import UserError

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
