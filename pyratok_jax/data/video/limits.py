"""A limit of the time for which a reader waits for one step of FFmpeg.

Code of FFmpeg cannot be interrupted from Python, but it runs without the interpreter's lock. So the
work is done in a thread, which is left behind where it does not answer in time; it ends with the
process. `decoding.Decoder`, which ends a process of its own, is for training, which runs for weeks.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

from pyratok_jax.data.video.opening import BrokenVideoError

T = TypeVar("T")

MAX_WAIT_SECONDS = 120.0  # For the next frame, a header, or a short clip.
_AHEAD = 1  # Frames.
_POLL_SECONDS = 0.2


def limited(items: Generator[T, None, None], name: str) -> Iterator[T]:
    """The items of a generator, which runs in a thread, a few items ahead.

    Args:
        items: what is limited; it is closed in its thread.
        name: of the file, for the message.

    Raises:
        BrokenVideoError: the next item did not come within `MAX_WAIT_SECONDS`.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(item: Any, error: BaseException | None) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=_POLL_SECONDS)
                return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item, None):
                    items.close()
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            try:
                item, error = ready.get(timeout=MAX_WAIT_SECONDS)
            except queue.Empty:
                reason = f"decoding it did not go on within {MAX_WAIT_SECONDS:g} s"
                raise BrokenVideoError(name, reason) from None
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()


def in_time(action: Callable[[], T], name: str) -> T:
    """What a function returns or raises, likewise limited. Raises: BrokenVideoError."""

    def once() -> Generator[T, None, None]:
        yield action()

    return next(limited(once(), name))
