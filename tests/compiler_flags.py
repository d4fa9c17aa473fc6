"""Environments for tests, which compile far longer than they compute. Imports nothing of JAX."""

import importlib.util
import mmap
import os
import shutil
import tempfile
from pathlib import Path

# Compiled programs of all runs of the tests by this user; past this size it is emptied.
CACHE = Path(tempfile.gettempdir()) / f"pyratok-test-programs-{os.getuid()}"
_CACHE_LIMIT = 4e9
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


def cache_variables() -> dict[str, str]:
    """Variables by which JAX keeps every compiled program, however small, in one folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE)),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


def bound_cache() -> None:
    """Empty the folder once it is too large; never beside workers, which read it."""
    if not CACHE.is_dir() or "PYTEST_XDIST_WORKER" in os.environ:
        return
    if sum(file.stat().st_size for file in CACHE.iterdir()) > _CACHE_LIMIT:
        shutil.rmtree(CACHE)


def quick_environment(devices: int = 1, large: bool = False) -> dict[str, str]:
    """Variables of a process that compiles quickly for the CPU, or runs `large` steps on it."""
    flags = quick_flags(devices, _FAST if large else _QUICK)
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def plain_environment(**variables: str) -> dict[str, str]:
    """Without the tests' flags and cache: for other compilers than XLA's for CPUs."""
    kept = {k: v for k, v in os.environ.items() if k not in cache_variables()}
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | variables
