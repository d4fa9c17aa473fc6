"""Test set-up: the CPU alone, full matmul precision, and shape annotations that are checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tests.compiler_flags import quick_flags  # noqa: E402

os.environ["XLA_FLAGS"] = quick_flags()

import ctypes  # noqa: E402
import gc  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Whole training steps are compiled by several tests; a program compiled once is kept.
_CACHE = Path(tempfile.gettempdir()) / f"pyratok-test-programs-{os.getuid()}"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Tracing makes many small objects; at the usual thresholds much time goes into looking for cycles.
gc.set_threshold(100_000, 20, 50)

# Every jaxtyping annotation in these packages is checked at run time in all tests.
jaxtyping.install_import_hook(["pyratok_jax.models", "pyratok_jax.losses"], "beartype.beartype")


# Minutes each. A worker that took one of them last would end alone.
_LONG = ("test_meshes.py", "test_run.py", "test_compile.py", "test_ablations.py")


def pytest_collection_modifyitems(items):
    """The longest modules first."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_module():
    """Compiled programs are let go after each module: kept, they fill a worker's memory by GBs."""
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        # What compiling has freed, the allocator otherwise keeps.
        ctypes.CDLL(None).malloc_trim(0)
