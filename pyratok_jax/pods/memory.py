"""Memory of a compiled program per chip, and the compiler's answer when it does not fit."""

import dataclasses
import re

from pyratok_jax.pods.chips import GIBIBYTE

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm\.\s*Exceeded hbm capacity by {_SIZE}")
_NEEDED = re.compile(
    rf"total memory required for [\w ]+ \({_SIZE}\) exceeds available HBM \({_SIZE}\)"
)
_PART = re.compile(rf"^\s+(reserved|program|arguments)\s+{_SIZE}\s*$", re.MULTILINE)
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip.

    Attributes:
        arguments, outputs, temporaries, code: by kind.
        aliased: outputs that reuse the memory of arguments.
        used: all together, at the same time.
        capacity: that a program may use on this chip.
    """

    arguments: float = 0.0
    outputs: float = 0.0
    temporaries: float = 0.0
    aliased: float = 0.0
    code: float = 0.0
    used: float = 0.0
    capacity: float = 0.0

    @property
    def exceeded(self) -> float:
        """What is missing; 0 when the program fits."""
        return max(self.used - self.capacity, 0.0)

    @property
    def fits(self) -> bool:
        """Whether the program can be loaded and run."""
        return not self.exceeded

    @property
    def verdict(self) -> str:
        """In words, in units of 2^30 bytes, as the compiler counts."""
        if self.fits:
            return f"fits ({(self.capacity - self.used) / GIBIBYTE:.1f} GB free)"
        return f"does not fit by {self.exceeded / GIBIBYTE:.1f} GB"


def parse_assignment(text: str) -> Memory:
    """Memory of the compiler's dump of its assignment of buffers.

    Buffers in other memories than HBM have a colour and do not count.
    """
    sums = {"arguments": 0.0, "outputs": 0.0, "aliased": 0.0, "temporaries": 0.0}
    for size, rest in _ALLOCATION.findall(text):
        if re.search(r"\bcolor [1-9]", rest):
            continue
        argument, result = " parameter " in rest, "maybe-live-out" in rest
        if argument:
            sums["arguments"] += int(size)
        if result:
            sums["outputs"] += int(size)
        if argument and result:
            sums["aliased"] += int(size)
        if not argument and not result:
            sums["temporaries"] += int(size)
    used = sums["arguments"] + sums["outputs"] - sums["aliased"] + sums["temporaries"]
    return Memory(**sums, used=used)


def parse_exhausted(message: str) -> Memory | None:
    """Memory as the compiler states it in its refusal; None when it refuses for another reason."""
    found = _USED.search(message)
    if found is not None:
        used, capacity = _bytes(found[1], found[2]), _bytes(found[3], found[4])
        parts = {name: _bytes(size, unit) for name, size, unit in _PART.findall(message)}
        arguments = parts.get("arguments", 0.0)
        total = max(used, capacity + _bytes(found[5], found[6]))
        return Memory(
            arguments=arguments, temporaries=total - arguments, used=total, capacity=capacity
        )
    found = _NEEDED.search(message)
    if found is not None:
        used, capacity = _bytes(found[1], found[2]), _bytes(found[3], found[4])
        return Memory(temporaries=used, used=used, capacity=capacity)
    return None


def _bytes(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit]
