"""Texts from anywhere in Markdown, which show as they are: no link, emphasis, formula or markup."""

import json
import re

from pyratok_jax.errors import printable

# Underscores inside of words, as names have them, are no emphasis.
_MARKS = re.compile(r"[\\`*\[\]~$|]|(?<!\w)_|_(?!\w)")


def cell(text: object) -> str:
    """A text as a cell of a table, or within a line."""
    plain = _line(text).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKS.sub(r"\\\g<0>", plain)


def code(text: object) -> str:
    """A text as code within a line or a table; backticks and vertical bars become look-alikes."""
    return f"`{_line(text).replace('`', 'ˋ').replace('|', '∣')}`"


def front_matter_value(text: str) -> str:
    """A text as a value of the YAML before a model card: one text, whatever is in it."""
    return json.dumps(text)  # A string of JSON is one of YAML.


def _line(text: object) -> str:
    return printable(str(text)).replace("\n", " ")
