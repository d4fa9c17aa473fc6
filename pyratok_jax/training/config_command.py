"""Configs on the command line of `train`: found by path or by name, and what `--help` prints.

`configs/demo.py:smoke`, `demo:smoke` and `/path/to/mine.py` name one. The project's own configs are
found in any folder: in a checkout they are in `configs/` beside the package, in an installed wheel
in `pyratok_jax/configs/`.
"""

import difflib
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

import pyratok_jax
from pyratok_jax.errors import UserError
from pyratok_jax.training.config_keys import flattened, known_values


def resolve_config(named: str) -> str:
    """FILE[:ARGUMENT] of the config that a command line names.

    Args:
        named: FILE[:ARGUMENT], or NAME[:ARGUMENT] of one of the project's own configs. A path
            `configs/NAME.py` that does not exist in the current folder means the project's.

    Raises:
        UserError: no such file and no such name; says which there are.
    """
    text, colon, argument = named.partition(":")
    if Path(text).is_file():
        return named
    known = shipped_configs()
    path = Path(text)
    own = path.suffix in ("", ".py") and path.parent in (Path(), Path("configs"))
    if own and path.stem in known:
        return f"{known[path.stem]}{colon}{argument}"
    near = difflib.get_close_matches(path.stem, known, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"--config {named}: no such file{meant}; name a file, or one of {', '.join(known)}"
    )


def shipped_configs() -> dict[str, Path]:
    """The project's own configs by name."""
    package = Path(pyratok_jax.__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        files = sorted(folder.glob("[a-z]*.py"))
        if files:
            return {file.stem: file for file in files}
    return {}


EXAMPLES = (
    ("a few steps, to see that all works", "--config demo:smoke"),
    ("your videos", "--config demo:fine --config.data.sources=\"('my_videos',)\" --workdir runs/1"),
    ("another learning rate and batch", "--config demo --config.optimizer.learning_rate=1e-4 "
     "--config.batch_size=4"),
    ("resume: the same command again", "--config demo --workdir runs/1"),
)  # fmt: skip
_WIDTH = 80


def help_text(named: str, config: ConfigDict | None, flags: Mapping[str, str]) -> str:
    """The help page, in lines of at most 80 columns.

    Args:
        named: the config as it was named on the command line.
        config: what its file gives.
        flags: the other flags of the command, with their meanings.
    """
    lines = [
        "usage: python -m pyratok_jax.train --config NAME_OR_FILE[:ARGUMENT]",
        "       [--config.KEY=VALUE ...] [--workdir DIR] [flags]",
        "",
        "examples:",
    ]
    for what, words in EXAMPLES:
        lines += [f"  # {what}", *_command(f"python -m pyratok_jax.train {words}")]
    lines += ["", "flags:"]
    for name, meaning in flags.items():
        lines += [f"  --{name}", *_indented(meaning)]
    lines += ["", "Exit codes: 0 finished, 2 a mistake in the input, 3 another host was lost,",
              "130 stopped with a checkpoint saved, 1 a defect."]  # fmt: skip
    if config is not None:
        lines += ["", f"keys of {named}, with their values here:"]
        lines += _keys(config)
    return "\n".join(lines)


def _keys(config: ConfigDict) -> Iterator[str]:
    for key, value in flattened(config):
        text = f"  --config.{key}={value!r}"
        yield text if len(text) <= _WIDTH else f"{text[: _WIDTH - 4]} ..."
        known = known_values(config.task, key)
        if known is not None:
            yield from _indented(f"{known[1]} ({known[0].expected})")


def _command(text: str) -> list[str]:
    lines = textwrap.wrap(
        text, _WIDTH - 6, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return [f"  {line}" + (" \\" if line != lines[-1] else "") for line in lines]


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
