"""TensorFlow, which writes event files, TFRecords and TFDS's metadata here and computes nothing.

While it is imported and looks for devices it says what no user of this package can act on: that
there is no CUDA driver, that logging has not begun. No variable of the environment silences that,
since it is said before any is read.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Lines of the parts that look for devices and instructions, and the line before the first of them:
# absl's "E0000 00:00:1795970688.386625 8717 cuda_platform.cc:52] ..." or TensorFlow's own
# "2026-11-29 16:45:17.123456: I tensorflow/core/util/port.cc:153] ...".
_NOISE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|([IWE]\d{4} |\d{4}-\d\d-\d\d [\d:.]+: [IWE] ).*"
    rb"\b(cudart_stub|cuda_\w+|cpu_feature_guard|port|gpu_device|util)\.cc:\d+\]"
    rb"|To enable the following instructions: .*TensorFlow"
)


def load_tensorflow() -> None:
    """Import TensorFlow in silence, without its accelerators: their memory is JAX's.

    To be called before anything that imports it by itself (clu, TFDS).
    """
    if "tensorflow" in sys.modules:
        return
    with _without_noise():
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # It has begun to compute already.
            tf.config.set_visible_devices([], "GPU")


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Hold back what the process, its C++ code included, says to stderr; all but noise follows."""
    try:
        sys.stderr.flush()
        own = os.dup(2)
    except (OSError, ValueError, AttributeError):  # There is no stderr.
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)
            held.seek(0)
            for line in held:
                if not _NOISE.match(line):
                    os.write(2, line)
