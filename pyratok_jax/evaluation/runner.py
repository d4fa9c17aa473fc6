"""Runs a task over its items: resumable, sharded over processes, never stopped by one bad item."""

import dataclasses
import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pyratok_jax.data.video.files import BrokenVideoError
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.framework import BrokenItemError, Item, Partial, Task
from pyratok_jax.evaluation.partials import PartialStore, broken_reason

# A run in which this many items in a row fail, and none has succeeded, is a mistake of the set-up.
_HOPELESS = 25


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which share of the items this process evaluates: items[index::count]."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(
                f"shard {self.index}/{self.count}: expected I/N with 0 <= I < N, as in 0/4"
            )


def parse_shard(text: str) -> Shard:
    """A shard written as I/N.

    Raises:
        UserError: written otherwise, or not 0 <= I < N.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise UserError(f"--shard {text}: expected I/N, as in 0/4")
    return Shard(int(index), int(count))


def unique_items(task: Task, limit: int) -> list[Item]:
    """The items of a task, at most the first `limit` (0: all).

    Raises:
        UserError: there is none, or two have the same id.
    """
    items = list(task.items())
    if not items:
        raise UserError(f"{task.data} holds nothing to evaluate for the task {task.name}")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise UserError(f"{task.data}: two items are called {item.id}; ids must be unique")
        seen.add(item.id)
    return items[:limit] if limit else items


def evaluate_items(
    task: Task, model: Any, items: Sequence[Item], store: PartialStore, console: Console
) -> None:
    """Evaluate those items that have no partial result yet (broken ones are tried again).

    Raises:
        UserError: nothing but failures.
    """
    todo = []
    for item in items:
        partial = store.load(item.id)
        if partial is None or broken_reason(partial) is not None:
            todo.append(item)
    if len(todo) < len(items):
        console.print(f"{len(items) - len(todo)} of {len(items)} items are done already")
    if not todo:
        return
    task.prepare(model)
    failures, successes = 0, len(items) - len(todo)
    with _bar(console, task.name, len(todo)) as advance:
        for item in todo:
            reason = _evaluate(task, model, item, store)
            failures, successes = failures + bool(reason), successes + (not reason)
            if reason:
                console.print(f"broken: {item.id}: {reason}", markup=False, soft_wrap=True)
            if failures >= _HOPELESS and not successes:
                raise UserError(
                    f"the first {failures} items of {task.data} all failed, the last with: "
                    f"{reason}; check --data"
                )
            advance()


def _evaluate(task: Task, model: Any, item: Item, store: PartialStore) -> str | None:
    """Evaluate one item and store what comes out; the reason when it is broken."""
    try:
        partial = task.evaluate_item(model, item)
    except (BrokenItemError, BrokenVideoError, UserError) as error:
        reason = " ".join(str(error).split())
    except MemoryError:
        raise
    except Exception as error:  # A defect with one item must not cost the others their results.
        logging.getLogger(__name__).warning("%s", traceback.format_exc())
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    else:
        store.save(item.id, partial)
        return None
    store.save_broken(item.id, reason)
    return reason


@contextmanager
def _bar(console: Console, title: str, total: int) -> Iterator[Any]:
    columns: Any = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("", total=total)
        yield lambda: bar.advance(line)


@dataclasses.dataclass(frozen=True)
class Gathered:
    """All partial results in the order of the items, and the items that have none."""

    partials: dict[str, Partial]
    broken: dict[str, str]
    missing: int


def gather(items: Sequence[Item], store: PartialStore) -> Gathered:
    """Read the partial results that all processes have written."""
    partials, broken, missing = {}, {}, 0
    for item in items:
        partial = store.load(item.id)
        if partial is None:
            missing += 1
        elif (reason := broken_reason(partial)) is not None:
            broken[item.id] = reason
        else:
            partials[item.id] = partial
    return Gathered(partials, broken, missing)
