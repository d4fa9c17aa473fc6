"""Files, pages and progress bars: what every command needs and nothing of models."""

from typing import Any, TypeAlias

# A value of a JSON document. Documents are checked by a schema where they are read
# (`documents.read_json`, `documents.checked`); mypy does not check them again.
Json: TypeAlias = Any


def text_bytes(text: str) -> bytes:
    """UTF-8; names of files that are not UTF-8 keep their bytes, other surrogates become "?"."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")
