"""The command lines of the package's modules."""

import argparse
import os
import textwrap
from collections.abc import Sequence
from typing import Any

from pyratok_jax.errors import UserError, printable
from pyratok_jax.io.remote import is_remote


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults where there are any that say something, and texts of several lines as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required or action.default in (None, "", [], ()) or action.nargs == 0:
            return action.help
        return super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "\n".join(self._wrapped(line, width) for line in text.splitlines())

    @staticmethod
    def _wrapped(line: str, width: int) -> str:
        command = line.startswith("  ")
        parts = textwrap.wrap(
            line, width - 2, subsequent_indent="      " if command else "",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
        return (" \\\n" if command else "\n").join(parts)


def say(line: str) -> None:
    """Print a line for people; what it names is shown as it is (`errors.printable`)."""
    print(printable(line))


def command_parser(
    module: str, description: str, *, examples: Sequence[str] = (), epilog: str | None = None
) -> argparse.ArgumentParser:
    """A parser for `python -m MODULE` whose --help names the defaults.

    Args:
        module: dotted name of the module.
        description: what the command does.
        examples: arguments to show as examples, a line each, below the flags.
        epilog: shown below the arguments: exit codes, for example.
    """
    lines = [f"  python -m {module} {words}" for words in examples]
    text = "\n".join(["examples:", *lines, *(["", epilog] if epilog else [])]) if lines else epilog
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=text,
        formatter_class=HelpFormatter,
    )


def add_frozen(parser: argparse.ArgumentParser) -> None:
    """Add `--backbone` and `--language`: where a tokenizer's frozen weights are on this machine."""
    for name, what in (("backbone", "frozen VAE"), ("language", "language model")):
        parser.add_argument(
            f"--{name}", metavar="DIR",
            help=f"folder of the tokenizer's {what}, where it is not the one of its training",
        )  # fmt: skip


def frozen_options(arguments: argparse.Namespace) -> dict[str, str]:
    """What `add_frozen` was given, as options of `load_tokenizer`."""
    given = {name: getattr(arguments, name) for name in ("backbone", "language")}
    return {name: value for name, value in given.items() if value}


def local_path(text: str) -> str:
    """The type of arguments that name a local file or folder to write.

    Raises:
        UserError: an address: as a path it would be a folder of an odd name.
    """
    if is_remote(text):
        raise UserError(f"{text} is an address; this command writes to local folders, name one")
    return text


class _NoVerify(argparse.Action):
    def __call__(self, *arguments: Any, **options: Any) -> None:
        # In the environment, so that it holds for worker processes too.
        os.environ["PYRATOK_VERIFY"] = "0"


def add_no_verify(parser: argparse.ArgumentParser) -> None:
    """Add `--no-verify`, which leaves out the comparison of stored bytes with their hashes."""
    parser.add_argument(
        "--no-verify", nargs=0, action=_NoVerify, default=argparse.SUPPRESS,
        help="do not compare weights, checkpoints and finished shards with their hashes",
    )  # fmt: skip
