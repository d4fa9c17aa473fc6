"""Paths on storage services (`gs://...`): which are opened, and a first contact that is bounded.

The clients of storage services try again for minutes where there is no network. So the first path
of a service in a process asks whether the service answers, for a few seconds at most.

Where gcsfs is installed (the extra `gcs`), it is the client behind every `gs://` path: it tries
failed requests again, its refusals are Python's own errors, and TensorFlow is not loaded. Without
it `etils.epath` uses TensorFlow's client, which reads and writes files but no working folders.
"""

import atexit
import contextlib
import functools
import http.client
import importlib.util
import os
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
import weakref
from pathlib import Path
from typing import Any, TypeAlias

from etils import epath

from pyratok_jax.errors import UserError

# A path whose methods are those that both kinds have: local paths stay those of Python.
AnyPath: TypeAlias = Path | epath.Path

SCHEMES = ("gs", "s3", "az", "abfs", "hf")
# Asked for an answer of any kind; clients of the other services give up by themselves.
_ADDRESSES = {"gs": "https://storage.googleapis.com/"}
# Other addresses that the client of Google Cloud Storage is told to use: not asked.
_OTHER_ADDRESSES = ("STORAGE_EMULATOR_HOST", "GCS_TESTBENCH_ENDPOINT")
_ATTEMPTS, _WAIT, _TIMEOUT = 3, 0.5, 3.0  # Times, seconds between them, seconds for each.


def _choose_client() -> None:
    """Have `etils.epath` and fsspec, here and in worker processes, use gcsfs if it is installed.

    Listings are not cached: TensorStore and other processes write to the same folders.
    """
    if importlib.util.find_spec("gcsfs") is None:
        return
    os.environ.setdefault("EPATH_USE_TF", "false")
    # fsspec reads these when it is imported, which takes too long to be done here.
    for protocol in ("GS", "GCS"):
        os.environ.setdefault(f"FSSPEC_{protocol}", '{"use_listings_cache": false}')
    if (fsspec := sys.modules.get("fsspec")) is not None:
        fsspec.config.set_conf_env(fsspec.config.conf)


_choose_client()


def _close_sessions() -> None:
    """Close the connections of gcsfs where they were opened, in the thread of its event loop.

    Its own way out does so from the main thread, which prints that the event loop is closed.
    """
    core = sys.modules.get("gcsfs.core")
    if core is None:
        return
    import asyncio

    kinds = [core.GCSFileSystem, *core.GCSFileSystem.__subclasses__()]
    for client in [one for kind in kinds for one in getattr(kind, "_cache", {}).values()]:
        session, loop = client.session, client.loop
        if session is not None and not session.closed and loop is not None and loop.is_running():
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(session.close(), loop).result(timeout=2.0)


# What is registered last is called first: so the finalizers of weakref, gcsfs's among them, come
# before this, though they are made later.
weakref.finalize(_close_sessions, int)
atexit.register(_close_sessions)


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


def any_path(name: str | os.PathLike) -> AnyPath:
    """A local path as Python's own, one on a storage service as `etils.epath`'s.

    Raises:
        UserError: as `open_path`.
    """
    return open_path(name) if is_remote(name) else Path(name)


def absolute(path: AnyPath) -> AnyPath:
    """A path that does not depend on the current folder; addresses stay as they are."""
    return path if is_remote(path) else Path(path).absolute()


def check_writable(folder: AnyPath, option: str) -> None:
    """Refuse a remote folder that cannot be written to, before any work begins.

    An object is written and removed: services have no folders that could be asked.

    Args:
        folder: local ones are not looked at.
        option: that named the folder, for the message.

    Raises:
        UserError: no such bucket, or no credentials.
    """
    if not is_remote(folder):
        return
    probe = epath.Path(folder) / f".probe-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except FileNotFoundError as error:
        bucket = os.fspath(folder).partition("://")[2].partition("/")[0]
        raise UserError(
            f"{option} {folder}: there is no bucket {bucket}, or it is hidden from you; make it "
            "(gcloud storage buckets create), or name another folder"
        ) from error
    except Exception as error:
        # The errors of the client, its HTTP library and its login have no common class.
        raise UserError(f"{option} {folder} cannot be written to: {refusal(error)}") from error


def create(path: epath.Path, data: bytes) -> bool:
    """Make a remote object unless there is one: of several that try at once, one alone succeeds.

    Without the extra `gcs` the service is asked first, and two may succeed.

    Returns:
        Whether it was made. A request that was answered too late is sent again by the client, and
        then finds the object that it made itself: read it to tell.
    """
    found = _client(path)
    if found is None:
        if path.exists():
            return False
        path.write_bytes(data)
        return True
    client, name = found
    try:
        client.pipe_file(name, data, mode="create")
    except Exception as error:
        if not _is_precondition(error):
            raise
        return False
    return True


def generation(path: epath.Path) -> str | None:
    """Which writing of a remote object is the present one; None where the service does not tell."""
    found = _client(path)
    return None if found is None else found[0].info(found[1]).get("generation")


def remove_generation(path: epath.Path, which: str | None) -> bool:
    """Remove a remote object if it is still as it was; whether it was.

    Args:
        which: as `generation` told it; None: it is removed as it is.
    """
    found = _client(path)
    try:
        if which is None or found is None:
            path.unlink()
            return True
        client, name = found
        bucket, _, key = name.partition("/")
        client.call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=which)
    except FileNotFoundError:
        return False
    except Exception as error:
        if not _is_precondition(error):
            raise
        return False
    return True


def _client(path: epath.Path) -> tuple[Any, str] | None:
    """The file system of fsspec behind a remote path, and its name there; None: not installed."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(os.fspath(path))
    except ImportError:
        return None


def _is_precondition(error: Exception) -> bool:
    """Whether a service refused since an object is not as the request said (gcsfs: it exists)."""
    if isinstance(error, FileExistsError):
        return True
    return getattr(error, "code", None) in (412, "412") or "Precondition" in str(error)


def refusal(error: BaseException) -> str:
    """What a storage service's client says of a failed request, in one line."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    if getattr(error, "code", None) in (401, 403, "401", "403") or "Forbidden" in text:
        text += "; log in (gcloud auth application-default login) or grant storage.objectAdmin"
    return text


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
