"""Components by their names in a config, as "module:attribute", imported when they are used."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.training.loop.contracts import Evaluator, S, Task

# Trains to the end and gives the files it wrote, by what they are; None: interrupted and saved.
Run = Callable[[ConfigDict, AnyPath], dict[str, AnyPath] | None]
# `config.task` -> where its `Run` is. The demo's own are in `demo.TASKS`.
TASKS = {
    "tokenizer": "pyratok_jax.training.tasks.run:run",
    "projector": "pyratok_jax.training.tasks.projector:run",
    "generator": "pyratok_jax.training.tasks.generator:run",
}
# Kind of an entry of `config.evaluators` -> its class.
EVALUATORS = {
    "heldout": "pyratok_jax.training.evaluators.heldout:HeldoutReconstruction",
    "zero_shot": "pyratok_jax.training.evaluators.zero_shot:ZeroShot",
    "heldout_tokens": "pyratok_jax.training.evaluators.heldout_tokens:HeldoutTokens",
}


def lookup(table: Mapping[str, str], name: str, key: str) -> Any:
    """What `table` has under `name`.

    Args:
        table: name -> "module:attribute".
        name: from a config.
        key: of the config, for the message.

    Raises:
        UserError: an unknown name.
    """
    if name not in table:
        raise UserError(f"config.{key} is {name!r}, expected one of {', '.join(sorted(table))}")
    module, _, attribute = table[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def make_evaluators(config: ConfigDict, task: Task[S]) -> list[Evaluator]:
    """The evaluators that `config.evaluators` asks for.

    An entry has `name`, `every` (steps), the options of its class, and `kind` where that is not its
    name. The class is called with (config, task, name=..., every=..., options).

    Raises:
        UserError: an unknown kind or option, a name that comes twice, a period below 1.
    """
    return [make(config, task, **options) for make, options in _entries(config.evaluators)]


def check_evaluators(entries: Iterable[Mapping[str, Json]]) -> None:
    """Refuse entries of `config.evaluators` that `make_evaluators` would; see there."""
    for _ in _entries(entries):
        pass


def _entries(
    entries: Iterable[Mapping[str, Json]],
) -> Iterator[tuple[Callable[..., Evaluator], dict[str, Json]]]:
    """The class and the options of each entry."""
    names: set[str] = set()
    for entry in entries:
        if not isinstance(entry, Mapping | ConfigDict):
            raise UserError(f"config.evaluators: {entry!r} is no entry with name and every")
        options = dict(entry)
        name = str(options.get("name", ""))
        make = lookup(EVALUATORS, str(options.pop("kind", name)), "evaluators")
        if name in names:
            raise UserError(f"config.evaluators has {name} twice; give each another name")
        names.add(name)
        try:
            inspect.signature(make).bind(None, None, **options)
        except TypeError as error:
            raise UserError(f"config.evaluators: {name}: {error}") from error
        every = options["every"]
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UserError(f"config.evaluators: {name}: every is {every!r}, expected steps >= 1")
        yield make, options
