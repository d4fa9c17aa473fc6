"""Many hosts: joining them."""

import os
from typing import Any

import jax

from pyratok_jax.errors import UserError

# Set by launch/local.sh; on TPU pods JAX finds the hosts by itself.
COORDINATOR, COUNT, INDEX = "PYRATOK_COORDINATOR", "PYRATOK_PROCESSES", "PYRATOK_PROCESS_ID"


def join_hosts(wanted: bool, silence: float = 60.0) -> None:
    """Connect this process to the others of its run; nothing for a single process.

    Args:
        wanted: let JAX find the hosts of a pod (`config.multi_host`). The environment variables of
            a local run take precedence.
        silence: seconds after which a process that is not heard of counts as lost
            (`config.host_timeout`). JAX's own limit lies above it, since it cannot name a host.

    Raises:
        UserError: the others cannot be reached, or the variables are incomplete.
    """
    given = {name: os.environ.get(name) for name in (COORDINATOR, COUNT, INDEX)}
    if not any(given.values()) and not wanted:
        return
    missing = [name for name, value in given.items() if not value]
    if missing and len(missing) < len(given):
        raise UserError(f"{', '.join(missing)} not set; set all of {', '.join(given)}, or none")
    # On CPUs, a process with one device would run the step beside the small programs of `Exchange`,
    # and their collective operations would meet those of the other processes in another order.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    limit: dict[str, Any] = {"heartbeat_timeout_seconds": int(2 * silence) + 10}
    try:
        if missing:
            jax.distributed.initialize(**limit)
        else:
            jax.distributed.initialize(
                given[COORDINATOR],
                int(given[COUNT] or 1),
                int(given[INDEX] or 0),
                initialization_timeout=120,
                **limit,
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {given[INDEX] or '?'} cannot join the others at {given[COORDINATOR]}: "
            f"{str(error).splitlines()[0]}; check that all processes run and the address is right"
        ) from error
