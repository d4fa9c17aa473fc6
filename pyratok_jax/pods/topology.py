"""Devices of a TPU slice that is not there: `libtpu` describes and compiles for it.

`prepare` must run before JAX's backend is asked for anything; it imports nothing of JAX.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

from pyratok_jax.errors import UserError
from pyratok_jax.pods.chips import Slice

# Without these libtpu looks for a TPU, its hosts and its metadata server.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    # Its notices of a missing TPU concern nobody here.
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def prepare(where: Slice) -> None:
    """Set the environment in which libtpu compiles without a TPU.

    Raises:
        UserError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compiling for TPU needs the package libtpu, which is not installed; install the extra "
            "tpu: pip install 'pyratok-jax[tpu]'"
        )
    os.environ.update(_ENVIRONMENT)
    # Of the smallest slice: the shape comes from the topology.
    os.environ["TPU_ACCELERATOR_TYPE"] = f"{where.chip.accelerator}-8"


def describe(where: Slice, slices: int = 1) -> Sequence[Any]:
    """The devices of one or several slices.

    Raises:
        UserError: libtpu knows no such slice.
    """
    from jax.experimental import topologies

    more = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=where.name, **more)
        devices = found.devices
    except Exception as error:  # noqa: BLE001 - libtpu raises its own, without a common class
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"--topology {where.name} with {slices} slices: libtpu refuses it: {reason}; take a "
            "shape that the cloud offers"
        ) from error
    if len(devices) != where.count * slices:
        raise UserError(
            f"--topology {where.name} with {slices} slices has {len(devices)} devices, not "
            f"{where.count * slices}: this libtpu counts TensorCores; take another chip"
        )
    return devices
