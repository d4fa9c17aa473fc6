"""TPU generations: what a chip has, and how a slice of them is written (`v5p:4x4x4`)."""

import dataclasses
import math
import re

from pyratok_jax.errors import UserError

GIGABYTE = 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one TPU chip.

    Attributes:
        name: as in a topology.
        accelerator: how the runtime spells the generation.
        unit: what the number in an accelerator type counts per chip (TensorCores or chips).
        memory: bytes of HBM that a program may use, as the compiler states them.
        bandwidth: of HBM, bytes per second.
        peak: bfloat16 operations per second.
        clock: cycles per second; with it the compiler's cycles become seconds.
        links: bytes per second to neighbouring chips, all links together, one way.
        dimensions: axes of a slice.
        host: chips of one host.
    """

    name: str
    accelerator: str
    unit: int
    memory: float
    bandwidth: float
    peak: float
    clock: float
    links: float
    dimensions: int
    host: int


GIBIBYTE = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "v5litepod", 1, 15.75 * GIBIBYTE, 0.82e12, 197e12, 1.5e9, 200e9, 2, 8),
        Chip("v5p", "v5p", 2, 95.73 * GIBIBYTE, 2.76e12, 459e12, 1.75e9, 600e9, 3, 4),
        Chip("v6e", "v6e", 1, 31.25 * GIBIBYTE, 1.64e12, 918e12, 1.75e9, 448e9, 2, 8),
    )
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: a chip and the shape in which so many of them are wired."""

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
    """A slice from its written form.

    Raises:
        UserError: another form, an unknown chip, or a shape that the chip has not.
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
