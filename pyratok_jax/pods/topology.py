"""TPU generations, slices of them (`v5p:4x4x4`), and the devices of a slice that is not attached.

`libtpu` describes a topology and compiles for it on a machine without a TPU. `prepare` must run
before JAX's backend is initialised; this module imports nothing of JAX until then.
"""

import atexit
import dataclasses
import functools
import importlib.util
import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyratok_jax.errors import UserError

if TYPE_CHECKING:
    import jax

GIGABYTE = 1e9
GIBIBYTE = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one TPU chip.

    Attributes:
        name: as in a topology.
        accelerator: the runtime's name of the generation.
        unit: what the number in an accelerator type counts per chip (TensorCores or chips).
        cores: TensorCores, which run one program together.
        memory: bytes of HBM that a program may use, as the compiler states them.
        bandwidth: of HBM, bytes per second.
        peak: bfloat16 operations per second.
        clock: cycles per second, which turn the compiler's cycles into seconds.
        links: interconnect bytes per second, all links together, one direction.
        dimensions: axes of a slice.
        host: chips per host.
    """

    name: str
    accelerator: str
    unit: int
    cores: int
    memory: float
    bandwidth: float
    peak: float
    clock: float
    links: float
    dimensions: int
    host: int


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "v5litepod", 1, 1, 15.75 * GIBIBYTE, 0.82e12, 197e12, 1.5e9, 200e9, 2, 8),
        Chip("v5p", "v5p", 2, 2, 95.73 * GIBIBYTE, 2.76e12, 459e12, 1.75e9, 600e9, 3, 4),
        Chip("v6e", "v6e", 1, 1, 31.25 * GIBIBYTE, 1.64e12, 918e12, 1.75e9, 448e9, 2, 8),
    )
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: a chip and the shape of its interconnect."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Chips of one slice."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """As written on the command line."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def accelerator_type(self) -> str:
        """The cloud's name, for example v5p-128 for 64 chips."""
        return f"{self.chip.accelerator}-{self.count * self.chip.unit}"


def parse_slice(written: str) -> Slice:
    """A slice written as CHIP:SHAPE.

    Raises:
        UserError: written otherwise, an unknown chip, or a shape with another number of axes.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", written.strip())
    if match is None or match[1] not in CHIPS:
        raise UserError(
            f"--topology {written!r}: expected CHIP:SHAPE with a chip of {', '.join(CHIPS)}, for "
            "example v5p:4x4x4, v5e:16x16 or v6e:8x8"
        )
    chip, shape = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
    if len(shape) != chip.dimensions or 0 in shape:
        raise UserError(
            f"--topology {written!r}: a {chip.name} slice has {chip.dimensions} axes, for example "
            f"{chip.name}:{'x'.join(['4'] * chip.dimensions)}"
        )
    return Slice(chip, shape)


_DUMPS = ("--xla_jf_dump_llo_text=true", "--xla_jf_dump_llo_pass_label_regex=final_bundles")
_FOLDER = "pyratok-schedules-"
# Without these libtpu looks for a TPU, its hosts and its metadata server.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    # No log messages about the missing TPU.
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
    # The smallest slice: its shape is overridden by the topology.
    os.environ["TPU_ACCELERATOR_TYPE"] = f"{where.chip.accelerator}-8"
    # The process that started this one may have asked for its own schedules; users' dumps stay.
    given = os.environ.get("LIBTPU_INIT_ARGS", "").split()
    if _DUMPS[1] in given:
        given = [word for word in given if word not in _DUMPS and _FOLDER not in word]
    if not any(word.startswith("--xla_jf_dump_to=") for word in given):
        given += [*_DUMPS, f"--xla_jf_dump_to={schedules_folder()}"]
    os.environ["LIBTPU_INIT_ARGS"] = " ".join(given)


@functools.cache
def schedules_folder() -> Path:
    """Where this process's libtpu writes the schedules of what it compiles; see `pods.kernels`.

    libtpu makes the folder, and makes it anew when it was removed.
    """
    folder = Path(tempfile.gettempdir()) / f"{_FOLDER}{os.getpid()}-{os.urandom(4).hex()}"
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def describe(where: Slice, slices: int = 1) -> "Sequence[jax.Device]":
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
