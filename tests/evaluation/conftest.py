import numpy as np
import pytest

from pyratok_jax.evaluation import synthetic


@pytest.fixture(scope="session")
def constructed(tmp_path_factory):
    """The constructed set, small; read-only for all tests."""
    folder = tmp_path_factory.mktemp("constructed")
    synthetic.write_all(folder, seed=1, count=3, size=48)
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)
