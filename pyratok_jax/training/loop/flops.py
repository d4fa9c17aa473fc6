"""Model FLOPs: multiply-adds of matrix products and convolutions, counted in the jaxpr.

Two FLOPs per multiply-add; nothing else counts. A scan's body counts once per iteration, the body
of a `shard_map` once per device. Trace without rematerialisation and without padded channels, or
that work is counted too.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.extend import core
from jaxtyping import PyTree


def count_flops(jaxpr: core.Jaxpr) -> float:
    """FLOPs of a traced program over all devices."""
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "scan":
        return params["length"] * count_flops(params["jaxpr"].jaxpr)
    if name == "cond":
        return max(count_flops(branch.jaxpr) for branch in params["branches"])
    if name == "shard_map":
        sizes = [params["mesh"].shape[axis] for axis in params["manual_axes"]]
        return math.prod(sizes) * count_flops(_open(params["jaxpr"]))
    return sum(count_flops(inner) for inner in _inner(params))


def _inner(params: Mapping[str, object]) -> Iterator[core.Jaxpr]:
    """Jaxprs inside an equation (calls, custom derivatives, loops of unknown length)."""
    # Rules for derivatives are functions, not jaxprs, until they are traced themselves.
    for value in params.values():
        if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
            yield _open(value)


def _open(value: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    return value if isinstance(value, core.Jaxpr) else value.jaxpr


def _shape(variable: core.Var | core.Literal) -> tuple[int, ...]:
    assert isinstance(variable.aval, jax.core.ShapedArray)
    return variable.aval.shape


def _of_product(equation: core.JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    depth = math.prod(left[i] for i in contracted)
    return 2.0 * math.prod(_shape(equation.outvars[0])) * depth


def _of_convolution(equation: core.JaxprEqn) -> float:
    """Every window position that meets a real (not a padded or dilated) value counts."""
    params = equation.params
    numbers = params["dimension_numbers"]
    left, right = (_shape(variable) for variable in equation.invars)
    out = _shape(equation.outvars[0])
    pairs = 1
    for axis, (lhs, rhs, to) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        pairs *= _meetings(
            left[lhs],
            right[rhs],
            out[to],
            params["window_strides"][axis],
            params["padding"][axis][0],
            params["lhs_dilation"][axis],
            params["rhs_dilation"][axis],
        )
    batch, features = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    depth = right[numbers.rhs_spec[1]]
    return 2.0 * batch * features * depth * pairs / params["batch_group_count"]


def _meetings(
    size: int, window: int, out: int, stride: int, before: int, dilation: int, spread: int
) -> int:
    """Pairs (output position, window position) that land on a value of the input."""
    taps = np.arange(window) * spread
    total = 0
    # In pieces: a gradient's window can be as long as the frame.
    for start in range(0, out, 256):
        places = np.arange(start, min(start + 256, out))[:, None] * stride - before + taps[None]
        real = (places >= 0) & (places <= (size - 1) * dilation) & (places % dilation == 0)
        total += int(real.sum())
    return total


def traced_flops(step: Callable[..., PyTree], *arguments: PyTree) -> float:
    """FLOPs of `step` on arguments given by shapes."""
    return count_flops(jax.make_jaxpr(step)(*arguments).jaxpr)
