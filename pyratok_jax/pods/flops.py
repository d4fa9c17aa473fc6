"""Model FLOPs: the multiply-adds that the mathematics needs, counted in the traced program.

Two per multiply-add of matrix products and convolutions; nothing else counts. Loops count as often
as they run, a part that is split over devices as often as there are devices. Trace without
rematerialisation and without padded channels, or what is recomputed and padded counts too.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core


def count_flops(jaxpr: core.Jaxpr) -> float:
    """FLOPs of a traced program over all devices."""
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
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


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The programs inside an operation (calls, custom derivatives, loops of unknown length)."""
    for name, value in params.items():
        # The rules for derivatives are not run beside the function that they belong to.
        if name in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"):
            continue
        if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            yield _open(value)


def _open(value: Any) -> core.Jaxpr:
    return value if hasattr(value, "eqns") else value.jaxpr


def _of_product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[i] for i in contracted)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth


def _of_convolution(equation: Any) -> float:
    """Every window position that meets a real (not a padded or dilated) value counts."""
    params = equation.params
    numbers = params["dimension_numbers"]
    left, right = (variable.aval.shape for variable in equation.invars)
    out = equation.outvars[0].aval.shape
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


def traced_flops(step: Any, *arguments: Any) -> float:
    """FLOPs of `step` on arguments given by shapes."""
    return count_flops(jax.make_jaxpr(step)(*arguments).jaxpr)
