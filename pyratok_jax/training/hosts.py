"""Many hosts: joining them, and saying which one failed."""

import os

import jax

from pyratok_jax.errors import UserError

# Set by launch/local.sh; on TPU pods JAX finds the hosts by itself.
COORDINATOR, COUNT, INDEX = "PYRATOK_COORDINATOR", "PYRATOK_PROCESSES", "PYRATOK_PROCESS_ID"


def join_hosts(wanted: bool) -> None:
    """Connect this process to the others of its run; nothing for a single process.

    Args:
        wanted: let JAX find the hosts of a pod (`config.multi_host`). The environment variables of
            a local run take precedence.

    Raises:
        UserError: the others cannot be reached, or the variables are incomplete.
    """
    given = {name: os.environ.get(name) for name in (COORDINATOR, COUNT, INDEX)}
    if not any(given.values()) and not wanted:
        return
    missing = [name for name, value in given.items() if not value]
    if missing and len(missing) < len(given):
        raise UserError(f"{', '.join(missing)} not set; set all of {', '.join(given)}, or none")
    try:
        if missing:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(
                given[COORDINATOR],
                int(given[COUNT] or 1),
                int(given[INDEX] or 0),
                initialization_timeout=120,
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"process {given[INDEX] or '?'} cannot join the others at {given[COORDINATOR]}: "
            f"{str(error).splitlines()[0]}; check that all processes run and the address is right"
        ) from error
