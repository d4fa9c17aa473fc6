"""Errors that a user can act on, and the one wrapper that every command runs in."""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

EXIT_USER_ERROR = 2
# Another process of a run on many hosts was lost or failed.
EXIT_HOST_LOST = 3
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A mistake in the input, not in the program.

    The message is one line: what is wrong, where (file, key or value), what was expected and what
    to do about it.
    """


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and exit the process.

    Exit codes: what `main` returns (None counts as 0); 2 for a `UserError`, printed as one line
    without a traceback; 130 for Ctrl-C. Any other exception is a defect and keeps its traceback.
    """
    try:
        code = main() or 0
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)


def check_fields(keys: Iterable[str], config: type, what: str) -> None:
    """Refuse keys of a stored configuration that are no fields of its dataclass.

    Args:
        keys: of the stored values.
        config: the dataclass.
        what: whose configuration it is, for the message.

    Raises:
        ValueError: naming the unknown keys.
    """
    unknown = set(keys) - {field.name for field in dataclasses.fields(config)}
    if unknown:
        raise ValueError(f"unknown keys in {what}: {sorted(unknown)}")
