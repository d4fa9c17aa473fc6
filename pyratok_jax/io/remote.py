"""Paths on storage services (`gs://...`): which are opened, and a first contact that is bounded.

The clients of storage services try again for minutes where there is no network. So the first path
of a service in a process asks whether the service answers, for a few seconds at most.
"""

import functools
import http.client
import os
import ssl
import threading
import time
import urllib.error
import urllib.request

from etils import epath

from pyratok_jax.errors import UserError

SCHEMES = ("gs", "s3", "az", "abfs", "hf")
# Asked for an answer of any kind; clients of the other services give up by themselves.
_ADDRESSES = {"gs": "https://storage.googleapis.com/"}
# Other addresses that the client of Google Cloud Storage is told to use: not asked.
_OTHER_ADDRESSES = ("STORAGE_EMULATOR_HOST", "GCS_TESTBENCH_ENDPOINT")
_ATTEMPTS, _WAIT, _TIMEOUT = 3, 0.5, 3.0  # Times, seconds between them, seconds for each.


class UnreachableError(UserError):
    """A storage service that does not answer."""


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path names an object of a storage service (`gs://...`) and not a local file."""
    return "://" in os.fspath(path)


def open_path(path: str | os.PathLike) -> epath.Path:
    """A path as a user or a file gives it, local or remote.

    Raises:
        UserError: an address that is no storage service (`http://...`), or a zero byte.
        UnreachableError: the service does not answer.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise UserError(f"{name}: no file's name holds a zero byte")
    if is_remote(name):
        scheme = name.partition("://")[0]
        if scheme not in SCHEMES:
            raise UserError(f"cannot open {name}: only files and {', '.join(SCHEMES)} are opened")
        reason = _unreachable(scheme)
        if reason:
            raise UnreachableError(
                f"cannot open {name}: {_ADDRESSES[scheme]} does not answer ({reason}); check the "
                "network, or name a local copy"
            )
    return epath.Path(path)


@functools.cache
def _unreachable(scheme: str) -> str:
    """Why a service does not answer; "" where it does."""
    address = _ADDRESSES.get(scheme)
    if address is None or any(name in os.environ for name in _OTHER_ADDRESSES):
        return ""
    reason = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(_WAIT * min(attempt, 1))
        reason = _asked(address)
        if not reason:
            return ""
    return reason


def _asked(address: str) -> str:
    """Why an address does not answer within the time; "" where it does."""
    found = ["no answer in time"]

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            urllib.request.urlopen(request, timeout=_TIMEOUT).close()
            found[0] = ""
        except (urllib.error.HTTPError, ssl.SSLError, http.client.HTTPException):
            found[0] = ""  # Something answers; what it thinks of the request does not matter.
        except urllib.error.URLError as error:
            answered = isinstance(error.reason, ssl.SSLError)
            found[0] = "" if answered else str(error.reason)
        except (OSError, ValueError) as error:
            found[0] = str(error)

    # A thread, since looking up a name has no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_TIMEOUT + 0.5)
    return found[0]
