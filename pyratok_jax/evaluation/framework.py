"""What an evaluation task is: items, a partial result per item, and metrics over all of them.

A task is a dataclass whose fields are its settings; together with what `protocol` adds they are
printed, stored with the results and part of a run's identity. Items can be evaluated in any order
by any number of processes: whatever the metrics need lies in the partial results, and nowhere
else, so that an interrupted or sharded run gives exactly what an undisturbed one does.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pyratok_jax.errors import UserError

# JSON-able values and, at the top level, numpy arrays.
Partial = dict[str, Any]


class BrokenItemError(Exception):
    """An item that cannot be evaluated: recorded with its reason, and the run goes on."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One unit of work, usually a video. `id` is unique and the same in every run."""

    id: str
    content: Any = None


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image file in the output folder, for the report."""

    file: str
    caption: str


@dataclasses.dataclass
class Task(abc.ABC):
    """Base of all tasks.

    Class attributes say what the task is; a subclass adds its settings as fields with defaults
    (int, float, bool or str), which `--set NAME=VALUE` overrides.

    Attributes:
        data: what `--data` names.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    data_help: ClassVar[str]
    # (key of the metrics, title, decimals) of the row for a paper, in its order.
    columns: ClassVar[tuple[tuple[str, str, int], ...]]
    # Settings that the metrics are computed with from finished partial results: changing them
    # does not need the items to be evaluated again.
    late_settings: ClassVar[frozenset[str]] = frozenset()
    # Whether a run may compare several checkpoints: `join` then makes one model of them.
    several: ClassVar[bool] = False

    data: str

    def wrap(self, tokenizer: Any) -> Any:
        """What `evaluate_item` gets as its model, of a `Tokenizer`; the tokenizer itself here."""
        return tokenizer

    def stand_in(self, kind: str) -> Any:
        """A model that tests the task: `oracle`, which knows the truth, or `random`.

        Raises:
            UserError: the task has none.
        """
        raise UserError(f"the task {self.name} takes a trained tokenizer, not {kind}")

    def join(self, models: Mapping[str, Any]) -> Any:
        """One model of those that `wrap` or `stand_in` made, by checkpoint; the only one here."""
        (model,) = models.values()
        return model

    def check(self) -> None:  # noqa: B027 - nothing to refuse by default
        """Refuse settings and data that cannot work, before any model is loaded.

        Raises:
            UserError: what is wrong.
        """

    def protocol(self) -> dict[str, Any]:
        """How the numbers are made: all settings, and what a subclass adds. JSON-able."""
        return self.settings()

    def settings(self) -> dict[str, Any]:
        """The values of all settings."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if name != "data"}

    @abc.abstractmethod
    def items(self) -> Sequence[Item]:
        """All items, in a fixed order.

        Raises:
            UserError: the data is missing or malformed.
        """

    def prepare(self, model: Any) -> None:  # noqa: B027 - nothing by default
        """Called once in every process before its first item (class embeddings, for example)."""

    @abc.abstractmethod
    def evaluate_item(self, model: Any, item: Item) -> Partial:
        """The partial result of one item.

        A key `clip` with `frames`, `height`, `width` and, where known, `bits` (of all its tokens)
        is summed up to the resolution, frame count and bits per pixel of the results.

        Raises:
            BrokenItemError: (or `BrokenVideoError`) the item cannot be evaluated.
        """

    @abc.abstractmethod
    def aggregate(self, partials: Mapping[str, Partial]) -> dict[str, Any]:
        """Metrics of the evaluated items, by item id in the order of `items`. JSON-able."""

    def pictures(self, partials: Mapping[str, Partial], folder: Path) -> list[Picture]:
        """Write pictures into `folder` (of the report) and name them; none by default."""
        return []

    def tables(self, metrics: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
        """Tables by heading, made of the metrics; a row is as in `reports.tables`."""
        return {}

    def rate_distortion(self, metrics: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
        """(bpp, PSNR) points by name, for a chart; none by default."""
        return {}


def parse_settings(task: type[Task], assignments: Sequence[str]) -> dict[str, Any]:
    """Settings given as NAME=VALUE, by the type of their defaults.

    Raises:
        UserError: an unknown name, or a value of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(task) if f.name != "data"}
    values = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or name not in fields:
            raise UserError(
                f"--set {text}: the task {task.name} has no such setting; give NAME=VALUE with "
                f"NAME one of {', '.join(fields) or '(it has none)'}"
            )
        values[name] = _parse(name, value, fields[name].default)
    return values


def _parse(name: str, value: str, default: Any) -> Any:
    kind = type(default)
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UserError(f"--set {name}={value}: expected true or false")
        return value.lower() == "true"
    try:
        return kind(value)
    except ValueError as error:
        raise UserError(f"--set {name}={value}: expected {kind.__name__}") from error
