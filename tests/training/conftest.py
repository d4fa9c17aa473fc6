import sys

import pytest

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
