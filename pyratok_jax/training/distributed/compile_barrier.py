"""Compile barrier: every process has compiled a program before any of them runs it.

Hosts compile at different speeds. A host that starts a program alone waits for the others inside
its first collective operation, and the runtime aborts that after half a minute. So programs are
compiled ahead of time, and all processes wait for each other before the first execution.
"""

import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar, cast

import jax
from jaxtyping import PyTree

from pyratok_jax.training.distributed.coordinator import coordinator

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
