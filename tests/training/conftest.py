import pytest

from tests.training.tiny import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Random frozen weights, videos and captions, see `tiny.make_world`."""
    return make_world(tmp_path_factory.mktemp("world"))
