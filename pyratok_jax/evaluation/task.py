"""What an evaluation task is: items, a partial result per item, metrics over them; and all tasks.

A task is a dataclass whose fields are its settings; together with what `protocol` adds they are
printed, stored with the results and part of a run's identity. Items can be evaluated in any order
by any number of processes: the metrics are a function of the partial results alone, so that an
interrupted or sharded run gives exactly the results of an undisturbed one.

To add a task: a module in `evaluation/tasks` with a subclass of `Task`, and its line in `TASKS`.
"""

import abc
import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast

import numpy as np

from pyratok_jax.errors import UserError
from pyratok_jax.io import Json

if TYPE_CHECKING:
    from pyratok_jax.tokenizer import Tokenizer

# "module:Class" by name. A module is imported when its task is used: none needs another's packages.
TASKS: dict[str, str] = {
    "reconstruction": "pyratok_jax.evaluation.tasks.reconstruction:Reconstruction",
    "compression": "pyratok_jax.evaluation.tasks.compression:Compression",
    "segmentation": "pyratok_jax.evaluation.tasks.segmentation:Segmentation",
    "localization": "pyratok_jax.evaluation.tasks.localization:Localization",
    "classification": "pyratok_jax.evaluation.tasks.classification:Classification",
    "probes": "pyratok_jax.evaluation.tasks.probes:Probes",
    "vqa": "pyratok_jax.evaluation.tasks.vqa:VideoQuestions",
    "codebook": "pyratok_jax.evaluation.tasks.codebook:Codebook",
    "generation": "pyratok_jax.evaluation.tasks.generation:Generation",
}

# Of one item: JSON-able values and, at the top level, numpy arrays.
Partial = dict[str, Any]
# Of all items: JSON-able.
Metrics = dict[str, Json]
# Of one `--set NAME=VALUE`.
Setting = int | float | bool | str
_MOST_STEPS = 1000  # of a range
# (bits per pixel, PSNR in dB)
RatePoints = Sequence[tuple[float, float]]


class BrokenItemError(Exception):
    """An item that cannot be evaluated: it is recorded with the reason and the run continues."""


class Model(Protocol):
    """What items are evaluated with; each task says what more it needs."""

    @property
    def checkpoint_hash(self) -> str:
        """Identity of its weights, part of a run's identity."""
        ...


ModelT = TypeVar("ModelT", bound=Model)
ContentT = TypeVar("ContentT")
ItemT = TypeVar("ItemT", covariant=True)


@dataclasses.dataclass(frozen=True)
class Item(Generic[ItemT]):
    """One unit of work, usually a video. `id` is unique and the same in every run."""

    id: str
    content: ItemT


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image file in the output folder, for the report."""

    file: str
    caption: str


@dataclasses.dataclass
class Task(abc.ABC, Generic[ModelT, ContentT]):
    """Base of all tasks, generic in the model and in what an item holds.

    Class attributes say what the task is; a subclass adds its settings as fields with defaults
    (int, float, bool or str), which `--set NAME=VALUE` overrides.

    Attributes:
        data: what `--data` names.
    """

    name: ClassVar[str]
    description: ClassVar[str]  # the docstring of the class, where it does not say otherwise
    data_help: ClassVar[str]
    # (key of the metrics, title, decimals) of the row for a paper, in its order.
    columns: ClassVar[tuple[tuple[str, str, int], ...]]
    # Settings that only `aggregate` reads: a change of them evaluates no item again.
    late_settings: ClassVar[frozenset[str]] = frozenset()
    # Settings by the name of a published protocol, which `evaluate --protocol` takes.
    protocols: ClassVar[Mapping[str, Mapping[str, Setting]]] = {}
    # What the row's last column counts: its items.
    counted: ClassVar[str] = "videos"
    # Whether a run may compare several checkpoints: `join` then makes one model of them.
    several: ClassVar[bool] = False
    # What `baseline` knows.
    baselines: ClassVar[tuple[str, ...]] = ("oracle", "random")

    data: str

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "description" not in cls.__dict__ and cls.__doc__:
            cls.description = " ".join(cls.__doc__.split())

    @abc.abstractmethod
    def wrap(self, tokenizer: "Tokenizer") -> ModelT:
        """The model that `evaluate_item` gets, of a trained tokenizer."""

    def load(self, checkpoint: str, **frozen: str) -> ModelT:
        """The model in a folder: that of a tokenizer, but for tasks that evaluate something else.

        Args:
            checkpoint: the folder.
            frozen: where its frozen weights are, as options of `load_tokenizer`.

        Raises:
            UserError: there is none.
        """
        from pyratok_jax.tokenizer import load_tokenizer

        return self.wrap(load_tokenizer(checkpoint, **frozen))

    def baseline(self, kind: str) -> ModelT:
        """A model that tests the task itself: `oracle`, which knows the truth, or `random`.

        Raises:
            UserError: the task has none.
        """
        raise UserError(f"the task {self.name} takes a trained tokenizer, not {kind}")

    def external(self, folder: str, rate: float | None, name: str, clips: Sequence[str]) -> ModelT:
        """What another method has made of the items `clips`, from files.

        Args:
            folder: of the files.
            rate: bits per pixel; None where there is none.
            name: of the method.
            clips: ids.

        Raises:
            UserError: the task reads no such files, or some are missing.
        """
        raise UserError(f"the task {self.name} takes no --reconstructions, reconstruction does")

    def row_columns(self) -> Sequence[tuple[str, str, int]]:
        """The columns of the row for a paper with these settings."""
        return self.columns

    def join(self, models: Mapping[str, ModelT]) -> ModelT:
        """One model of those that `wrap` or `baseline` made, by checkpoint; here the only one."""
        (model,) = models.values()
        return model

    def checkpoint_facts(self, model: ModelT) -> dict[str, Json]:
        """What results say of the checkpoint beside its name and hash."""
        return {}

    def check(self) -> None:  # noqa: B027 - nothing to refuse by default
        """Refuse settings and data that cannot work, before any model is loaded.

        Raises:
            UserError: what is wrong.
        """

    def protocol(self) -> dict[str, Json]:
        """How the numbers are made: all settings, and what a subclass adds. JSON-able."""
        return self.settings()

    def settings(self) -> dict[str, Setting]:
        """The values of all settings."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if name != "data"}

    @abc.abstractmethod
    def items(self) -> Sequence[Item[ContentT]]:
        """All items, in a fixed order.

        Raises:
            UserError: the data is missing or malformed.
        """

    def prepare(self, model: ModelT) -> None:  # noqa: B027 - nothing by default
        """Called once in every process before its first item (class embeddings, for example)."""

    @abc.abstractmethod
    def evaluate_item(self, model: ModelT, item: Item[ContentT]) -> Partial:
        """The partial result of one item.

        The entries `clip` (`clip_facts`) are summed up to the resolution, frame count and bits per
        pixel of the results.

        Raises:
            BrokenItemError: (or `BrokenVideoError`) the item cannot be evaluated.
        """

    @abc.abstractmethod
    def aggregate(self, partials: Mapping[str, Partial]) -> Metrics:
        """Metrics of the evaluated items, by item id in the order of `items`."""

    def pictures(self, partials: Mapping[str, Partial], folder: Path) -> list[Picture]:
        """Write pictures into `folder` (of the report) and name them; none by default."""
        return []

    def tables(self, metrics: Metrics) -> dict[str, list[dict[str, Json]]]:
        """Tables by heading, made of the metrics; a row is as in `reports.tables`."""
        return {}

    def rate_distortion(self, metrics: Metrics) -> Mapping[str, RatePoints]:
        """Points by name, for a chart; none by default."""
        return {}


def load_task(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        UserError: there is none of that name.
    """
    if name not in TASKS:
        raise UserError(f"no task {name}; expected one of {', '.join(TASKS)}, or list")
    module, _, attribute = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def clip_facts(video: np.ndarray, bits: float | None) -> dict[str, Json]:
    """The entry `clip` of a partial result: size of a clip (t, h, w, 3), bits of its tokens."""
    frames, height, width = video.shape[:3]
    return {"frames": frames, "height": height, "width": width, "bits": bits}


def parse_settings(task: type[Task], assignments: Sequence[str]) -> dict[str, Setting]:
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
        values[name] = _parse(name, value, cast(Setting, fields[name].default))
    return values


def _parse(name: str, value: str, default: Setting) -> Setting:
    kind = type(default)
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise UserError(f"--set {name}={value}: expected true or false")
        return value.lower() == "true"
    try:
        return kind(value)
    except ValueError as error:
        raise UserError(f"--set {name}={value}: expected {kind.__name__}") from error


def check_numbers(task: Task, *names: str, low: float = -math.inf, above: bool = False) -> None:
    """Refuse settings that are not finite, or too low.

    Args:
        task: whose settings they are.
        *names: of the settings.
        low: the least that is allowed.
        above: `low` itself is not allowed.

    Raises:
        UserError: the first that is refused.
    """
    bound = f" {'above' if above else 'from'} {low:g}" if math.isfinite(low) else ""
    for name in names:
        value = getattr(task, name)
        if not math.isfinite(value) or value < low or (above and value == low):
            raise UserError(f"--set {name}={value}: expected a finite number{bound}")


def parse_range(text: str, name: str) -> list[float]:
    """Numbers "first:step:last" (both ends included) or "a,b,c".

    Raises:
        UserError: written otherwise, or steps that do not lead from the first to the last.
    """
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        first, step, last = (float(part) for part in text.split(":"))
        steps = (last - first) / step
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"--set {name}={text}: expected first:step:last or numbers with commas between"
        ) from error
    # Also false for NaN, which comes of an end that is infinite.
    leads = 0 <= steps <= _MOST_STEPS and abs(steps - round(steps)) < 1e-6
    if not leads or (first != last and round(steps) == 0):
        raise UserError(
            f"--set {name}={text}: expected at most {_MOST_STEPS} whole steps from first to last, "
            f"these are {steps:g}; name another step, or the numbers with commas between"
        )
    return [round(first + i * step, 10) for i in range(round(steps) + 1)]


def parse_numbers(
    text: str, name: str, expected: str, *, low: float, high: float = math.inf, whole: bool = True
) -> list[Any]:
    """Numbers with commas between.

    Args:
        text: the value of the setting.
        name: of the setting.
        expected: what to write instead, for the message.
        low: the least that is allowed.
        high: the greatest.
        whole: ints; else floats.

    Raises:
        UserError: written otherwise, empty, or out of range.
    """
    kind: Callable[[str], float] = int if whole else float
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(low <= value <= high for value in values):
        raise UserError(f"--set {name}={text}: expected {expected}")
    return values
