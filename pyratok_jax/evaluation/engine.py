"""Runs a task over its items: resumable, sharded over processes, never stopped by one bad item.

Partial results are files, one per item, complete or absent; all processes share the folder.
"""

import dataclasses
import hashlib
import io
import json
import logging
import os
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console

from pyratok_jax.data.video.files import BrokenVideoError
from pyratok_jax.errors import UserError
from pyratok_jax.evaluation.task import BrokenItemError, ContentT, Item, ModelT, Partial, Task
from pyratok_jax.io import Json, text_bytes
from pyratok_jax.io.atomic import write_bytes, write_text
from pyratok_jax.io.documents import WRONG_VALUE, parse_json, read_json, read_npz
from pyratok_jax.io.progress import progress_bar

_JSON = "json"
_ERROR = "broken"
# A run in which this many items in a row fail, and none has succeeded, is a mistake of the set-up.
_HOPELESS = 25


class PartialStore:
    """The partial results of one run, in `folder`.

    The run's identity is stored with them: a folder never mixes results of different runs.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = epath.Path(folder)

    def claim(self, identity: Mapping[str, Json]) -> None:
        """Bind the folder to a run, or check that it belongs to the same one.

        Raises:
            UserError: it holds partial results of another run.
        """
        path = self.folder / "run.json"
        wanted = json.loads(json.dumps(identity))
        if not path.exists():
            write_text(path, json.dumps(wanted, indent=1))
            return
        stored = read_json(
            path, dict[str, Json], advice="remove its folder or name another --output"
        )
        for key in sorted(stored.keys() | wanted.keys()):
            if stored.get(key) != wanted.get(key):
                raise UserError(
                    f"{self.folder.parent} holds results of a run with another {key}: "
                    f"{_short(stored.get(key))} there, {_short(wanted.get(key))} now; "
                    "name a new --output or pass --restart"
                )

    def path(self, item: str) -> epath.Path:
        """The file of an item's partial result."""
        digest = hashlib.sha256(text_bytes(item)).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}.npz"

    def save(self, item: str, partial: Partial) -> None:
        """Store a partial result: arrays as they are, all else as JSON."""
        arrays = {k: v for k, v in partial.items() if isinstance(v, np.ndarray)}
        plain = {k: v for k, v in partial.items() if k not in arrays}
        text = json.dumps({"id": item, "values": plain}, allow_nan=True)
        content: dict[str, Any] = {f"a_{key}": value for key, value in arrays.items()}
        content[_JSON] = np.frombuffer(text.encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **content)
        path = self.path(item)
        if path.is_dir():  # No partial result of ours; it would be in the way.
            path.rmtree()
        write_bytes(path, buffer.getvalue())

    def save_broken(self, item: str, reason: str) -> None:
        """Record that an item cannot be evaluated."""
        self.save(item, {_ERROR: reason})

    def load(self, item: str) -> Partial | None:
        """The partial result of an item, or None where there is none (or a damaged one)."""
        try:
            found = read_npz(self.path(item))
            record = parse_json(found.pop(_JSON).tobytes(), item)
            arrays = {key[2:]: value for key, value in found.items() if key.startswith("a_")}
            return {**record["values"], **arrays} if record["id"] == item else None
        except (UserError, *WRONG_VALUE):
            return None

    def remove(self) -> None:
        """Forget everything."""
        if self.folder.exists():
            self.folder.rmtree()


def broken_reason(partial: Partial) -> str | None:
    """Why an item could not be evaluated; None for one that could."""
    return partial.get(_ERROR)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


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


def unique_items(task: Task[ModelT, ContentT], limit: int) -> list[Item[ContentT]]:
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
    task: Task[ModelT, ContentT],
    model: ModelT,
    items: Sequence[Item[ContentT]],
    store: PartialStore,
    console: Console,
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
    with progress_bar(console, only_on_terminal=True) as bar:
        line = bar.add_task(task.name, total=len(todo))
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
            bar.advance(line)


def _evaluate(
    task: Task[ModelT, ContentT], model: ModelT, item: Item[ContentT], store: PartialStore
) -> str | None:
    """Evaluate one item and store what comes out; the reason when it is broken."""
    try:
        partial = task.evaluate_item(model, item)
    except (BrokenItemError, BrokenVideoError, UserError) as error:
        reason = " ".join(str(error).split())
    except MemoryError:
        raise
    except Exception as error:  # One item's defect must not cost the others their results.
        logging.getLogger(__name__).warning("%s", traceback.format_exc())
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    else:
        store.save(item.id, partial)
        return None
    store.save_broken(item.id, reason)
    return reason


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
