"""The coordination service of a run on several processes: key-value store and barriers.

`jax.distributed.initialize` starts it, but JAX has no public name for its client. This is the only
file of the package that reads `jax._src`.
"""

import dataclasses
from typing import Protocol

from jax._src import distributed

# Longer than any compilation or report: a lost process is found by its heartbeat (`heartbeat`).
PATIENCE_SECONDS = 24 * 3600


class Client(Protocol):
    """What is used of the service's client."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """Store a value for all processes."""

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """All (key, value) whose keys begin so."""

    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None:
        """Return once all processes wait there; each id can be used once."""


@dataclasses.dataclass(frozen=True)
class Coordinator:
    """This process's place in a run of several.

    Attributes:
        client: of the service.
        index: of this process.
        count: of all processes.
        address: HOST:PORT of process 0, which runs the service.
    """

    client: Client
    index: int
    count: int
    address: str

    def wait(self, barrier: str) -> None:
        """Wait until all processes have come to this barrier."""
        self.client.wait_at_barrier(barrier, PATIENCE_SECONDS * 1000)


def coordinator() -> Coordinator | None:
    """The coordination service; None for a process that is alone."""
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        return None
    return Coordinator(
        state.client, state.process_id, state.num_processes, state.coordinator_address or ""
    )
