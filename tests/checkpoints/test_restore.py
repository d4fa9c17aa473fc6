"""Modules filled with the arrays of a checkpoint."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pyratok_jax.checkpoints.partition import restore_module
from pyratok_jax.errors import UserError


def make():
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


ARRAYS = {
    "part.kernel": jnp.arange(6.0).reshape(2, 3),
    "part.bias": jnp.ones(3),
    "another.bias": jnp.zeros(1),
}


def test_a_module_takes_its_arrays_by_prefix():
    module, values = restore_module(make, "part", ARRAYS, "a folder")
    assert set(values) == {"kernel", "bias"}
    np.testing.assert_array_equal(module(jnp.ones((1, 2))), [[4.0, 6.0, 8.0]])


@pytest.mark.parametrize(
    "changes", [{"part.kernel": jnp.zeros((3, 2))}, {"part.kernel": None}], ids=["shape", "missing"]
)
def test_arrays_that_do_not_fit_are_refused_by_name(changes):
    with pytest.raises(UserError, match=r"a folder at part\.kernel"):
        restore_module(make, "part", ARRAYS | changes, "a folder")
