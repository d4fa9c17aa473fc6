"""The progress bar of every command."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(
    console: Console, *more: ProgressColumn, only_on_terminal: bool = False
) -> Progress:
    """Description, bar, done of total, time taken and time left; a context manager.

    Args:
        console: where it is shown.
        more: further columns, before the times.
        only_on_terminal: show nothing where output goes to a file, else its last state.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        *more,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=only_on_terminal and not console.is_terminal,
    )
