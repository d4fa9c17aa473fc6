"""`jax.distributed.initialize` for the processes of one run, on a pod or on one machine."""

import os

import jax

from pyratok_jax.errors import UserError

# Set by launch/local.sh; on TPU pods JAX finds the hosts by itself.
COORDINATOR, COUNT, INDEX = "PYRATOK_COORDINATOR", "PYRATOK_PROCESSES", "PYRATOK_PROCESS_ID"


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
