"""Joining the processes of one run, its coordination service, and the compile barrier.

`jax.distributed.initialize` starts the service (key-value store and barriers), on a pod or on one
machine, but JAX has no public name for its client. This is the only file of the package that reads
`jax._src`.

Hosts compile at different speeds. A host that starts a program alone waits for the others inside
its first collective operation, and the runtime aborts that after half a minute. So programs are
compiled ahead of time, and all processes wait for each other before the first execution.
"""

import dataclasses
import itertools
import os
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar, cast

import jax
from jax._src import distributed
from jaxtyping import PyTree

from pyratok_jax.errors import UserError

# Set by launch/local.sh; on TPU pods JAX finds the hosts by itself.
COORDINATOR, COUNT, INDEX = "PYRATOK_COORDINATOR", "PYRATOK_PROCESSES", "PYRATOK_PROCESS_ID"
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


def join_hosts(wanted: bool, silence: float = 60.0) -> None:
    """Connect this process to the others of its run; nothing for a process that is alone.

    Args:
        wanted: let JAX find the hosts of a pod (`config.multi_host`). The environment variables of
            a local run take precedence.
        silence: seconds without a heartbeat after which a process counts as lost
            (`config.host_timeout`). JAX's own limit is set above it: its message names no host.

    Raises:
        UserError: the others cannot be reached, or the variables are incomplete.
    """
    given = {name: os.environ.get(name) for name in (COORDINATOR, COUNT, INDEX)}
    if not any(given.values()) and not wanted:
        return
    missing = [name for name, value in given.items() if not value]
    if missing and len(missing) < len(given):
        raise UserError(f"{', '.join(missing)} not set; set all of {', '.join(given)}, or none")
    # On CPUs, a process with one device would run the step concurrently with the small programs of
    # `ProcessAllGather`: collectives would start in another order than in the other processes.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    timeout = int(2 * silence) + 10
    try:
        if missing:
            jax.distributed.initialize(heartbeat_timeout_seconds=timeout)
        else:
            jax.distributed.initialize(
                given[COORDINATOR],
                int(given[COUNT] or 1),
                int(given[INDEX] or 0),
                initialization_timeout=120,
                heartbeat_timeout_seconds=timeout,
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {given[INDEX] or '?'} cannot join the others at {given[COORDINATOR]}: "
            f"{str(error).splitlines()[0]}; check that all processes run and the address is right"
        ) from error


R = TypeVar("R")
_numbers = itertools.count()


def barrier() -> None:
    """Wait until all processes have called this equally often; nothing for a process alone.

    There is no time limit: `heartbeat` ends a run that has lost a process.
    """
    number = next(_numbers)
    service = coordinator()
    if service is not None:
        service.wait(f"pyratok/barrier/{number}")


class AheadOfTime(Generic[R]):
    """A jitted function that is compiled on all processes, for each set of shapes, before it runs.

    Inputs of the same shapes and dtypes must always have the same shardings, and every process must
    call it with the same shapes in the same order.
    """

    def __init__(self, function: jax.stages.Wrapped):
        """Wrap what `jax.jit` has made; `R` is the type of its result."""
        self._function = function
        self._programs: dict[Hashable, jax.stages.Compiled] = {}

    def is_compiled(self, *inputs: PyTree) -> bool:
        """Whether there is a program for inputs of these shapes."""
        return _signature(inputs) in self._programs

    def __call__(self, *inputs: PyTree) -> R:
        """The function's result; compiles first where inputs of these shapes are new."""
        signature = _signature(inputs)
        if signature not in self._programs:
            self._programs[signature] = self._function.lower(*inputs).compile()
            barrier()
        return cast(R, self._programs[signature](*inputs))


def _signature(inputs: tuple[PyTree, ...]) -> Hashable:
    leaves, structure = jax.tree.flatten(inputs)
    return structure, *((x.shape, x.dtype) for x in leaves)
