"""Test set-up: the CPU alone, programs compiled once for all, and shape annotations checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tests.compiler_flags import bound_cache, cache_variables, quick_flags  # noqa: E402

os.environ["XLA_FLAGS"] = quick_flags()
# In the environment, so that all workers and the processes that tests start share one cache.
os.environ.update(cache_variables())
bound_cache()

import ctypes  # noqa: E402
import gc  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

from tests.tiers import marks_of  # noqa: E402

# Tracing makes many small objects; at the usual thresholds much time goes into looking for cycles.
gc.set_threshold(100_000, 20, 50)

# Every jaxtyping annotation in these packages is checked at run time in all tests.
jaxtyping.install_import_hook(["pyratok_jax.models", "pyratok_jax.losses"], "beartype.beartype")

# The longest modules, minutes each. A worker that took one of them last would end alone.
_LONG = (
    "test_meshes.py",
    "test_run.py",
    "test_compile.py",
    "test_previous_stage.py",
    "test_ablations.py",
    "test_calibration.py",
)
# A worker that holds more lets go of its compiled programs.
_MEMORY_LIMIT = 3e9
_TESTS = Path(__file__).parent
# What a save of a source file need not wait for.
_NOT_FAST = ("slow", "heavy", "process", "tpu_compile")


def pytest_collection_modifyitems(items):
    """The longest modules first; marks of `tests.tiers`, and `fast` for whatever has none."""
    items.sort(key=lambda item: item.path.name not in _LONG)
    for item in items:
        test = f"{item.path.relative_to(_TESTS).as_posix()}::{item.name}"
        for name in marks_of(test):
            item.add_marker(name)
        if not any(item.get_closest_marker(name) for name in _NOT_FAST):
            item.add_marker(pytest.mark.fast)


def _resident_bytes() -> float:
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory():
    """Modules share compiled programs (most tests build the same tiny networks) up to a limit."""
    yield
    if _resident_bytes() > _MEMORY_LIMIT:
        jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        # What compiling has freed, the allocator otherwise keeps.
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A storage service on loopback, which gcsfs, Orbax and TensorStore are pointed at."""
    from tests.gcs_server import GcsServer

    with GcsServer() as server, pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, server.address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "project")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setenv("PYRATOK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield server
