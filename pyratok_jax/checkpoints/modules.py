"""Between NNX modules and flat names: the shapes a model has, and a model made from arrays.

An array's name is its path in the module joined with dots (`encoder.down.0.conv1.kernel`).
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from flax import nnx

from pyratok_jax.errors import UserError

M = TypeVar("M", bound=nnx.Module)


def _parameters(module: nnx.Module) -> dict[str, nnx.Param]:
    state = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(str(part) for part in path): value for path, value in state}


def module_shapes(make: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of the module that `make` returns, without making it."""
    return {name: tuple(p.shape) for name, p in _parameters(nnx.eval_shape(make)).items()}


def build_module(make: Callable[[], M], arrays: Mapping[str, jax.Array | np.ndarray]) -> M:
    """The module that `make` returns, its parameters being `arrays`; nothing is initialised.

    Non-parameter state (random streams) is not made: pass a `make` whose module has none.

    Raises:
        UserError: when names or shapes do not fit.
    """
    module = nnx.eval_shape(make)
    graph, parameters, *rest = nnx.split(module, nnx.Param, ...)
    flat = nnx.to_flat_state(parameters)
    names = {".".join(str(part) for part in path): path for path, _ in flat}
    if names.keys() != dict(arrays).keys():
        odd = sorted(names.keys() ^ dict(arrays).keys())
        raise UserError(f"{len(odd)} arrays do not fit the model, first {odd[0]}; convert again")
    filled = []
    for path, variable in flat:
        array = arrays[".".join(str(part) for part in path)]
        if tuple(array.shape) != tuple(variable.shape):
            raise UserError(f"{path}: {array.shape} given, the model needs {variable.shape}")
        filled.append((path, variable.replace(array)))
    return nnx.merge(graph, nnx.from_flat_state(filled), *rest)


def module_arrays(module: nnx.Module) -> dict[str, jax.Array]:
    """Name -> array of every parameter."""
    return {name: value[...] for name, value in _parameters(module).items()}
