import sys

import pytest

from tests.gcs_server import GcsServer
from tests.training.tiny import make_world
from tests.training.worker import without_tensorboard


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Random frozen weights, videos and captions, see `tiny.make_world`."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def no_tensorboard(monkeypatch):
    """Its writer loads TensorFlow, which takes longer than the trainings of a line."""
    monkeypatch.setitem(sys.modules, "clu.metric_writers", None)
    without_tensorboard()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A storage service on loopback, which gcsfs, Orbax and TensorStore are pointed at."""
    with GcsServer() as server, pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, server.address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        patch.setenv("GOOGLE_CLOUD_PROJECT", "project")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setenv("PYRATOK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield server
