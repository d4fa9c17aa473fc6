"""Components by name: `config.task` and the like, loaded from "module:attribute" when used."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pyratok_jax.errors import UserError

# Trains to the end and gives the files it wrote, by what they are; None: interrupted and saved.
Run = Callable[[ConfigDict, Path], dict[str, Path] | None]
# `config.task` -> where its `Run` is. The demo's own are in `demo.TASKS`.
TASKS = {
    "tokenizer": "pyratok_jax.training.tasks.run:run",
    "projector": "pyratok_jax.training.tasks.projector:run",
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
