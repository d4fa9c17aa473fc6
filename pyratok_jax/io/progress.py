"""The progress bar of every command."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pyratok_jax.errors import printable

T = TypeVar("T")
_LINE_SECONDS = 30.0  # Between two lines of output that goes to a file.


class PlainConsole(Console):
    """A console that shows text as it is: nothing in it is markup, an emoji code or a control."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does, control characters written as escapes."""
        return super().render_str(printable(text), **options)


class ProgressBar(Progress):
    """A live bar on a terminal; where output goes to a file, a line every half minute.

    Lines are printed while the work advances, and once more when a task is complete.
    """

    def __init__(
        self,
        *columns: ProgressColumn,
        console: Console,
        silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = not console.is_terminal and not silent
        super().__init__(*columns, console=console, disable=self._lines or silent)
        self._clock, self._printed, self._ended = clock, clock(), set[TaskID]()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Add to what a task has done."""
        super().advance(task_id, advance)
        self._print_line(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task's description, total, completed amount or fields."""
        super().update(task_id, **changes)
        self._print_line(task_id)

    def _print_line(self, task_id: TaskID) -> None:
        if not self._lines:
            return
        task, now = self._tasks[task_id], self._clock()
        ends = task.finished and task_id not in self._ended
        if ends or (now - self._printed >= _LINE_SECONDS and not task.finished):
            self._printed = now
            if ends:
                self._ended.add(task_id)
            self.console.print(progress_line(task), soft_wrap=True, markup=False, highlight=False)


def progress_line(task: Task) -> str:
    """A task's state as one line of text: done of total, time taken, time left."""
    parts = [f"{task.completed:g}" + (f"/{task.total:g}" if task.total is not None else "")]
    parts.append(f"{_clock_time(task.elapsed or 0.0)} taken")
    if task.time_remaining and not task.finished:
        parts.append(f"{_clock_time(task.time_remaining)} left")
    parts += [str(value) for value in task.fields.values() if value]
    return f"{task.description}: " + ", ".join(parts)


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def progress_bar(
    console: Console, *more: ProgressColumn, only_on_terminal: bool = False
) -> ProgressBar:
    """Description, bar, done of total, time taken and time left; a context manager.

    Args:
        console: where it is shown.
        more: further columns, before the times.
        only_on_terminal: show nothing where output goes to a file, else a line now and then.
    """
    return ProgressBar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        *more,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        silent=only_on_terminal and not console.is_terminal,
    )


def track(
    items: Iterable[T] | Sequence[T],
    description: str,
    console: Console,
    *,
    total: int | None = None,
    only_on_terminal: bool = False,
) -> Iterable[T]:
    """The items, with a bar that advances as they are taken; see `progress_bar`."""
    with progress_bar(console, only_on_terminal=only_on_terminal) as bar:
        yield from bar.track(items, total=total, description=description)
