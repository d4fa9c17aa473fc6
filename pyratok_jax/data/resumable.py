"""Endless streams of batches on grain that resume at any step."""

import abc
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import grain
from absl import flags, logging

from pyratok_jax.errors import UserError

T = TypeVar("T")
# The length of a source whose elements never end; grain wants one.
ENDLESS = 1 << 48


class Closable(Protocol):
    """A running iterator of grain."""

    def __next__(self) -> Any:
        """The next element."""

    def close(self) -> None:
        """End its threads and processes."""


def _close_all(iterators: list[Closable]) -> None:
    while iterators:
        iterators.pop().close()


class ResumableLoader(grain.DatasetIterator, abc.ABC, Generic[T]):
    """An endless iterator whose whole state is (seed, number of the next step).

    Subclasses say how the stream from a step on is read, with whatever threads, worker processes
    and hosts there are, and what becomes of an element.

    Attributes:
        step: number of the next batch.
        broken: what was skipped so far because it cannot be read, with the reason.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._running: list[Closable] = []  # Grain's iterator, or nothing.
        # At exit grain's own clean-up comes too late and prints errors.
        weakref.finalize(self, _close_all, self._running)
        self.step = 0
        self.broken: dict[str, str] = {}

    @abc.abstractmethod
    def _stream(self, step: int) -> grain.IterDataset:
        """The elements from a step on."""

    @abc.abstractmethod
    def _take(self, element: Any) -> T:
        """The batch in an element. Raises: UserError, when nothing can be read."""

    def _note_broken(self, skipped: Sequence[tuple[str, str]], kind: str) -> None:
        """Remember and log what was skipped, each once."""
        for name, reason in skipped:
            if name not in self.broken:
                self.broken[name] = reason
                logging.warning("skipped unreadable %s %s: %s", kind, name, reason)

    def __next__(self) -> T:
        """The next batch.

        Raises:
            UserError: the data cannot be read.
        """
        batch = self._take(next(self._iterator()))
        self.step += 1
        return batch

    def _iterator(self) -> Closable:
        if not self._running:
            self._running.append(iter(self._stream(self.step)))
        return self._running[0]

    def get_state(self) -> dict[str, int]:
        """The step of the next batch and the seed; plain JSON."""
        return {"step": self.step, "seed": self._seed}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Resume at a saved step, with whatever numbers of workers and hosts this loader has.

        Raises:
            UserError: the state is of another seed, whose stream this is not.
        """
        if int(state.get("seed", self._seed)) != self._seed:
            raise UserError(
                f"the checkpoint's data state was saved with seed {state['seed']}, the config has "
                f"seed {self._seed}; resume with the same seed"
            )
        _close_all(self._running)
        self.step = int(state["step"])

    def start_prefetch(self) -> None:
        """Begin to read ahead before the first batch is asked for."""
        start = getattr(self._iterator(), "start_prefetch", None)
        if start is not None:
            start()

    def close(self) -> None:
        """End threads and worker processes."""
        _close_all(self._running)
        super().close()


def in_processes(dataset: grain.IterDataset, workers: int, ahead: int) -> grain.IterDataset:
    """Read a dataset in worker processes, each of which makes every n-th element."""
    if not flags.FLAGS.is_parsed():  # grain reads flags, which only absl programs parse.
        flags.FLAGS.mark_as_parsed()
    return dataset.mp_prefetch(grain.MultiprocessingOptions(workers, ahead))
