"""The progress bar of every command."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
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


class Remaining(ProgressColumn):
    """Time left, at the mean speed since the first advance: however long the parts take."""

    def __init__(self, pace: "Pace") -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        """The column's text."""
        left = self._pace.left(task)
        return Text("-:--:--" if left is None else _clock_time(left), style="progress.remaining")


class Pace:
    """How fast tasks advance. The first advance starts the clock: what comes before may compile.

    Until the second advance the first one, with what came before it, is all there is to go by.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun: dict[TaskID, tuple[float, float]] = {}
        self._first: dict[TaskID, tuple[float, float]] = {}
        self._last: dict[TaskID, float] = {}

    def note(self, task: Task) -> None:
        """To be called whenever a task was added or changed."""
        now = self._clock()
        begun = self._begun.setdefault(task.id, (now, task.completed))
        if task.completed > begun[1] and task.id not in self._first:
            self._first[task.id] = (now, task.completed)
        if task.completed > (self._first.get(task.id) or begun)[1]:
            self._last[task.id] = now

    def left(self, task: Task) -> float | None:
        """Seconds until the task is done; None before there is anything to go by."""
        first = self._first.get(task.id)
        if task.total is None or first is None:
            return None
        if task.completed >= task.total:
            return 0.0
        start, done = first if task.completed > first[1] else self._begun[task.id]
        end = self._last.get(task.id, first[0])
        return max(end - start, 0.0) / (task.completed - done) * (task.total - task.completed)


class Stopwatch:
    """Seconds that the parts of a run took, one after another.

    Attributes:
        seconds: by what was done, in order.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str, *, of_these: Mapping[str, float] | None = None) -> None:
        """Note what has been done since the last lap.

        Args:
            name: of the part.
            of_these: seconds of it that are listed by themselves, before it.
        """
        now = time.perf_counter()
        for part, seconds in (of_these or {}).items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        rest = now - self._last - sum((of_these or {}).values())
        self.seconds[name] = self.seconds.get(name, 0.0) + rest
        self._last = now


class ProgressBar(Progress):
    """A live bar on a terminal; where output goes to a file, a line every half minute.

    Lines are printed while the work advances, and once more when a task is complete.

    Attributes:
        note: shown below the bar, cut at the terminal's width.
    """

    def __init__(
        self,
        *columns: ProgressColumn,
        console: Console,
        silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
        pace: Pace | None = None,
    ) -> None:
        self._lines, self.note = not console.is_terminal and not silent, ""
        self._pace = pace or Pace(clock)
        self._clock, self._printed, self._ended = clock, clock(), set[TaskID]()
        super().__init__(*columns, console=console, disable=self._lines or silent)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, and the note below them."""
        yield from super().get_renderables()
        if self.note:
            yield Text(printable(self.note), no_wrap=True, overflow="ellipsis")

    def add_task(self, *arguments: Any, **options: Any) -> TaskID:
        """Add a task; see rich."""
        number = super().add_task(*arguments, **options)
        self._pace.note(self._tasks[number])
        return number

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Add to what a task has done."""
        super().advance(task_id, advance)
        self._noted(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task's description, total, completed amount or fields."""
        super().update(task_id, **changes)
        self._noted(task_id)

    def _noted(self, task_id: TaskID) -> None:
        task, now = self._tasks[task_id], self._clock()
        self._pace.note(task)
        if not self._lines:
            return
        ends = task.finished and task_id not in self._ended
        if ends or (now - self._printed >= _LINE_SECONDS and not task.finished):
            self._printed = now
            if ends:
                self._ended.add(task_id)
            line = progress_line(task, self._pace.left(task), self.note)
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)


def progress_line(task: Task, left: float | None = None, note: str = "") -> str:
    """A task's state as one line of text: done of total, time taken, time left."""
    parts = [f"{task.completed:g}" + (f"/{task.total:g}" if task.total is not None else "")]
    parts.append(f"{_clock_time(task.elapsed or 0.0)} taken")
    if left and not task.finished:
        parts.append(f"{_clock_time(left)} left")
    parts += [str(value) for value in task.fields.values() if value]
    if note:
        parts.append(note)
    return f"{task.description}: " + ", ".join(parts)


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def progress_bar(
    console: Console,
    *more: ProgressColumn,
    only_on_terminal: bool = False,
    silent: bool = False,
) -> ProgressBar:
    """Description, bar, done of total, time taken and time left; a context manager.

    Args:
        console: where it is shown.
        more: further columns, before the times.
        only_on_terminal: show nothing where output goes to a file, else a line now and then.
        silent: show nothing at all.
    """
    pace = Pace(time.monotonic)
    return ProgressBar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        *more,
        TimeElapsedColumn(),
        TextColumn("left"),
        Remaining(pace),
        console=console,
        silent=silent or (only_on_terminal and not console.is_terminal),
        pace=pace,
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
