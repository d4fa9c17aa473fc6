"""Between NNX modules and flat dictionaries of arrays by name.

An array's name is its path in the module, joined by dots (`encoder.down.0.conv1.kernel`).
Checkpoints, optimizer states (which are stored in the order of these names) and configurations hold
these names, so they outlive a move of the array inside the module: `STORED_PATHS` then says what it
is still called. `Partition` takes a module apart into what training changes and what it must not;
`build_module` makes a module of given arrays.
"""

import re
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import jax
import numpy as np
from flax import nnx

from pyratok_jax.errors import UserError

M = TypeVar("M", bound=nnx.Module)
Arrays = dict[str, jax.Array]
Leaf = jax.Array | np.ndarray | jax.ShapeDtypeStruct  # of a module that may be abstract
# Whether training changes a variable, by its dotted name in the module.
Trainable = Callable[[str, nnx.Variable], bool]
# Path in today's modules -> stored name.
STORED_PATHS = (
    # The levels of LaPQ, before they became a quantiser like the others.
    (re.compile(r"(^|\.)quantizer\.(blocks|synthesis)\."), r"\1\2."),
)


def stored_name(path: tuple) -> str:
    """The name under which the array at `path` of a module is stored."""
    name = ".".join(map(str, path))
    for pattern, stored in STORED_PATHS:
        name = pattern.sub(stored, name)
    return name


class Partition(Generic[M]):
    """A module taken apart: `trainable` and `frozen` arrays by dotted name, and the way back.

    Works on abstract modules (`nnx.eval_shape`) too; the dictionaries then hold shapes.
    """

    def __init__(self, module: M, is_trainable: Trainable):
        self._graph, state = nnx.split(module)
        self._variables: dict[str, tuple[tuple, nnx.Variable]] = {}
        self.trainable: Arrays = {}
        self.frozen: Arrays = {}
        for path, variable in nnx.to_flat_state(state):
            name = stored_name(path)
            value = variable.get_value()
            # The template must not keep the first weights alive.
            shape = jax.ShapeDtypeStruct(value.shape, value.dtype)
            self._variables[name] = (path, variable.replace(shape))
            part = self.trainable if is_trainable(name, variable) else self.frozen
            part[name] = value

    def merge(self, *parts: Mapping[str, Leaf]) -> M:
        """The module with arrays from `parts`, which together hold every name."""
        values = {name: value for part in parts for name, value in part.items()}
        flat = [
            (path, variable.replace(values[name]))
            for name, (path, variable) in self._variables.items()
        ]
        return nnx.merge(self._graph, nnx.from_flat_state(flat))


def restore_module(
    make: Callable[[], M], prefix: str, arrays: Mapping[str, jax.Array], origin: str
) -> tuple[M, Arrays]:
    """The module that `make` returns with arrays of a checkpoint; nothing is initialised.

    Args:
        make: builds the module; only its shapes are used.
        prefix: of the names in `arrays`, before a dot.
        arrays: by stored name; more than the module has are allowed.
        origin: where they come from, for the message.

    Returns:
        the module, and its arrays by stored name without the prefix.

    Raises:
        UserError: an array is missing or has another shape.
    """
    partition = Partition(nnx.eval_shape(make), lambda name, variable: True)
    values = {}
    for name, shape in partition.trainable.items():
        value = arrays.get(f"{prefix}.{name}")
        if value is None or tuple(value.shape) != tuple(shape.shape):
            raise UserError(f"{origin} at {prefix}.{name}")
        values[name] = value
    return partition.merge(values), values


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
