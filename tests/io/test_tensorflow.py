"""TensorFlow says nothing that a user cannot act on, and nothing else is lost."""

import os
import subprocess
import sys

import pytest

from pyratok_jax.io.tensorflow import _without_noise
from tests.processes import ROOT

NOISE = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795970682.753100    8717 cudart_stub.cc:31] Could not find cuda drivers on your machine
E0000 00:00:1795970688.386625    8717 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA
2026-11-29 16:45:17.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.
"""
SAID = (
    "F0000 00:00:1795970688.386625    8717 coordination.cc:9] a host is gone\n"
    "error: the disk is full\n"
)


def test_noise_is_left_out_and_the_rest_follows(capfd):
    with _without_noise():
        os.write(2, (NOISE + SAID).encode())
    os.write(2, b"later\n")
    assert capfd.readouterr().err == SAID + "later\n"


def test_what_was_said_before_an_error_follows_too(capfd):
    with pytest.raises(ImportError), _without_noise():
        os.write(2, SAID.encode())
        raise ImportError
    assert capfd.readouterr().err == SAID


@pytest.mark.process
def test_event_files_and_records_are_written_in_silence(tmp_path):
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pyratok_jax.io.shards import ShardWriter\n"
        "from pyratok_jax.training.loop.metrics_log import MetricsLog\n"
        "folder = Path(sys.argv[1])\n"
        "MetricsLog(folder, start=0).write(1, {'loss': 1.0})\n"
        "with ShardWriter(folder / 'x.tfrecord', 'tfrecord') as writer:\n"
        "    writer.write(b'record')\n"
    )
    variables = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, env=variables,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "x.tfrecord").stat().st_size
