"""Errors that a user can act on, and the one wrapper that every command runs in."""

import dataclasses
import errno
import importlib.util
import io
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

EXIT_USER_ERROR = 2
# Another process of a run on many hosts was lost or failed.
EXIT_HOST_LOST = 3
# Done, but some inputs were damaged: they are named and left out.
EXIT_PARTIAL = 4
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """A mistake in the input, not in the program.

    The message is one line: what is wrong, where (file, key or value), what was expected and what
    to do about it.
    """


def printable(text: str) -> str:
    """Text for people: control characters other than line feeds and tabs become escapes.

    So do those that turn the direction of text, or cannot be seen, but not the joiners that
    Persian, Indian scripts and emoji need.
    """
    return _UNUSUAL.sub(_escaped, text)


_UNUSUAL = re.compile(r"[^\x20-\x7e\n\t\u200c\u200d]")


def _escaped(found: re.Match[str]) -> str:
    control = unicodedata.category(found[0]) in ("Cc", "Cf", "Cs")
    return found[0].encode("unicode_escape").decode() if control else found[0]


def short(value: object, most: int = 300) -> str:
    """A value found in a file for a message: in one line of at most `most` characters."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def quoted(value: object) -> str:
    """A value found in a file for a message, as Python writes it, in at most 60 characters."""
    return short(repr(value), 60)


def _one_line(error: BaseException | str) -> str:
    return printable(" ".join(str(error).split()))


def run_cli(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and exit the process.

    Exit codes: what `main` returns (None counts as 0); 2 for a `UserError`, printed as one line
    without a traceback, as is what the machine refuses (`environment_reason`); 130 for Ctrl-C. Any
    other exception is a defect and keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold what the terminal's encoding does not.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main() or 0
    except UserError as error:
        print("error: " + _one_line(error), file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except Exception as error:
        reason = environment_reason(error) or missing_package(error)
        if reason is None:
            raise
        print("error: " + _one_line(reason), file=sys.stderr)
        code = EXIT_USER_ERROR
    sys.exit(code)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TF_ERRORS = "tensorflow.python.framework.errors"
# As fsspec says it: "Please install gcsfs to access Google Storage".
_NO_CLIENT = re.compile(r"[Ii]nstall \w+ to access")
# Packages of the clients whose errors are no OSErrors or name no file, and what TensorStore says.
_CLIENTS = ("aiohttp", "gcsfs", "google", "requests")
_OF_TENSORSTORE = ('Error opening "zarr" driver: ', "Error reading gs://", "Error writing gs://")
# As XLA says it.
_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED.*([Oo]ut of memory|alloc)", re.DOTALL)
_REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR,
    errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT, errno.EIO, errno.ESTALE, errno.EBUSY,
)  # fmt: skip


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that no more can be written."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in _FULL:
            return True
        text = str(one).lower()
        if any(os.strerror(number).lower() in text for number in _FULL):
            return True
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused, of the machine or of an accelerator."""
    return any(isinstance(one, MemoryError) or _OF_MEMORY.search(str(one)) for one in _chain(error))


def environment_reason(error: BaseException) -> str | None:
    """What the machine or a storage service refused, in one line: a full disk, no such path.

    None for an error that is not of that kind.
    """
    named = next((e for e in _chain(error) if isinstance(e, OSError) and e.filename), None)
    place = "" if named is None else f" ({os.fsdecode(named.filename)})"
    if is_full_disk(error):
        return (
            f"the disk is full{place}: what was finished is kept; make room and run the same "
            "command again to resume"
        )
    if is_out_of_memory(error):
        found = short(str(error).partition("\n")[0], 120) or "of this process"
        return f"the memory is not enough ({found}); use a smaller size, window or batch"
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in (errno.EMFILE, errno.ENFILE):
            return f"too many open files{place}; raise the limit with `ulimit -n`"
        if (reason := storage_reason(one)) is not None:
            return f"the storage service failed: {reason}; run the same command again"
    if named is not None and named.errno in _REFUSED:
        return f"{os.fsdecode(named.filename)}: {named.strerror}; make it readable and writable"
    return None


# Optional packages by the name that is imported: what pip installs, and the extra that has it.
_OPTIONAL = {
    "apache_beam": ("apache-beam", "beam"), "constriction": ("constriction", "compress"),
    "diffusers": ("diffusers", "test"), "gcsfs": ("gcsfs", "gcs"),
    "pycocotools": ("pycocotools", "evaluation"),
    "skvideo": ("sk-video", "demo"), "torch": ("torch", "test"),
    "trackeval": ("trackeval", "evaluation"),
}  # fmt: skip


def missing_package(error: BaseException) -> str | None:
    """Which optional package is missing and how to install it; None for any other error."""
    for one in _chain(error):
        name = (one.name or "").split(".")[0] if isinstance(one, ModuleNotFoundError) else ""
        if name in _OPTIONAL:
            package, extra = _OPTIONAL[name]
            return (
                f"the package {package} is not installed: pip install {package}, or this project "
                f"with its extra {extra}"
            )
    return None


def require(*packages: str) -> None:
    """Refuse to begin without optional packages, by the names that are imported.

    Raises:
        UserError: one is missing.
    """
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise UserError(missing_package(ModuleNotFoundError(name=name)) or f"no package {name}")


def storage_reason(error: BaseException) -> str | None:
    """What a storage service's client says of a failure, in one line; None for other errors.

    TensorFlow's errors are no OSErrors, and a client that is not installed is an ImportError.
    """
    text = short(str(error))
    kinds = {
        kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith(_TF_ERRORS)
    }
    if "OpError" in kinds:
        return "no such file" if "NotFoundError" in kinds else text
    package = type(error).__module__.partition(".")[0]
    if package in _CLIENTS or any(mark in text for mark in _OF_TENSORSTORE):
        return text.partition(" [")[0] or type(error).__name__
    if isinstance(error, ImportError) and _NO_CLIENT.search(text):
        return text
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


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
