"""Texts from anywhere in Markdown, which show as they are: no link, emphasis, formula or markup."""

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


def _line(text: object) -> str:
    return printable(str(text)).replace("\n", " ")
