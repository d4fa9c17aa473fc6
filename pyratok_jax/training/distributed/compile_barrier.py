"""Programs that every process of a run has compiled before any of them starts one.

Hosts compile at different speeds. A program that one of them starts alone waits inside its first
collective operation for the others, and the runtime gives up after half a minute there.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # The barriers of the coordinator have no public name.

_LIMIT_SECONDS = 24 * 3600
_meetings = itertools.count()


def meet() -> None:
    """Wait until all processes have come here; nothing for a process that is alone.

    For how long is not limited here: `watch` ends a run whose processes are lost.
    """
    number = next(_meetings)
    client = distributed.global_state.client
    if client is not None and distributed.global_state.num_processes > 1:
        client.wait_at_barrier(f"pyratok/meeting/{number}", _LIMIT_SECONDS * 1000)


class CompiledTogether:
    """A jitted function whose programs, one for each set of shapes, all processes have compiled.

    Args:
        function: made by `jax.jit`; inputs of the same shapes always have the same shardings. Every
            process calls it with the same shapes in the same order.
    """

    def __init__(self, function: Any):
        self._function = function
        self._programs: dict[Any, Callable[..., Any]] = {}

    def knows(self, *inputs: Any) -> bool:
        """Whether inputs of these shapes came before."""
        return _kind(inputs) in self._programs

    def __call__(self, *inputs: Any) -> Any:
        """The function's result."""
        kind = _kind(inputs)
        if kind not in self._programs:
            self._programs[kind] = self._function.lower(*inputs).compile()
            meet()
        return self._programs[kind](*inputs)


def _kind(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(inputs)
    return structure, *((x.shape, x.dtype) for x in leaves)
