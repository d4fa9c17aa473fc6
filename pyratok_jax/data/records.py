"""The one description of a clip that all sources produce."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClipRecord:
    """One clip: where it is and what it shows.

    `id` is unique within its source. `path` is a local or remote file. `start` and `end` are
    seconds within the file (None: its beginning, its end).
    """

    id: str
    path: str
    caption: str | None = None
    start: float | None = None
    end: float | None = None
