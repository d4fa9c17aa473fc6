import numpy as np
import pytest

from pyratok_jax.evaluation import synthetic
from tests.evaluation.tiny import language_tokenizer


@pytest.fixture(scope="session")
def constructed(tmp_path_factory):
    """The constructed set, small; read-only for all tests."""
    folder = tmp_path_factory.mktemp("constructed")
    synthetic.write_all(folder, seed=1, count=3, size=48)
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tokenizer():
    """A tiny random tokenizer with a tiny random language model."""
    return language_tokenizer()
