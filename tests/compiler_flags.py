"""Flags of XLA for tests, which compile far longer than they compute. Imports nothing of JAX."""

import importlib.util
import mmap
import os
from pathlib import Path

# Without its newer emitters of fused loops, XLA's CPU compiler takes a third of the time.
_QUICK = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
# Where steps are large enough to take longer than their compilation.
_FAST = ("--xla_backend_optimization_level=1",)


def _known(flag: str) -> bool:
    """Whether the installed compiler has a flag: it ends a process that gives it another."""
    found = importlib.util.find_spec("jaxlib")
    assert found is not None and found.origin is not None, "jaxlib is not installed"
    name = flag.removeprefix("--").split("=")[0].encode()
    for library in Path(found.origin).parent.glob("*.so"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
            if m.find(name) >= 0:
                return True
    return False


def quick_flags(devices: int = 1, flags: tuple[str, ...] = _QUICK) -> str:
    """The variable XLA_FLAGS with these, and so many virtual devices; not what tests set before."""
    given = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag not in _QUICK]
    added = [flag for flag in flags if _known(flag)]
    if devices > 1:
        added.append(f"--xla_force_host_platform_device_count={devices}")
    return " ".join([*given, *added])


def quick_environment(devices: int = 1, large: bool = False) -> dict[str, str]:
    """Variables of a process that compiles quickly for the CPU, or runs `large` steps on it."""
    flags = quick_flags(devices, _FAST if large else _QUICK)
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
