"""Optimizers and learning-rate schedules by configuration; Muon iterated on Gram matrices.

Newton and Schulz's iteration multiplies a tall matrix X by polynomials of X'X. All of them commute,
so that the polynomials alone are iterated, on small square matrices, and X is read only twice: a
fifth of the products of the usual form. Matrices of one shape are handled together.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.models import text_statistics
from pyratok_jax.training.config_keys import OPTIMIZERS, SCHEDULES


def learning_rate(config: Mapping[str, Json], steps: int) -> optax.Schedule:
    """Linear warm-up, then the rest by `schedule`.

    "cosine" decays to `final_share` of the peak at `steps`; "constant" stays at the peak;
    "trapezoid" stays there and decays linearly to `final_share` over the last `decay_share` of the
    steps.

    Raises:
        UserError: an unknown schedule, or a warm-up longer than the training.
    """
    peak, warmup = config["learning_rate"], config["warmup"]
    if config["schedule"] not in SCHEDULES:
        raise UserError(
            f"optimizer.schedule is {config['schedule']!r}, expected {', '.join(SCHEDULES)}"
        )
    if warmup > steps:
        raise UserError(f"optimizer.warmup {warmup} is longer than the {steps} steps of training")
    if config["schedule"] == "constant":
        rest: optax.Schedule = optax.constant_schedule(peak)
    elif config["schedule"] == "cosine":
        rest = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), config["final_share"])
    else:
        length = max(round(steps * config["decay_share"]), 1)
        begin = max(steps - warmup - length, 0)
        rest = optax.linear_schedule(peak, peak * config["final_share"], length, begin)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), rest], [warmup])


def make_optimizer(config: Mapping[str, Json], steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, or Muon with Adam for arrays that are not matrices.

    "gram_muon" is Muon with fewer and shorter products, see `scale_by_gram_muon`.

    Args:
        config: name, learning_rate, warmup, schedule, final_share, decay_share, b1, b2,
            weight_decay (of kernels alone), clip_norm (0: no clipping), adam_share (of Muon's rate,
            for its Adam), groups: (pattern, factor) pairs. The first pattern that is found in an
            array's name gives the factor of its learning rate; others have 1.
        steps: length of the training.

    Raises:
        UserError: an unknown name or schedule.
    """
    rate = learning_rate(config, steps)
    if config["name"] == "adamw":
        # Without decay a mask would only change the layout of stored states.
        mask = _kernels if config["weight_decay"] else None
        rule = optax.adamw(
            rate, b1=config["b1"], b2=config["b2"], weight_decay=config["weight_decay"], mask=mask
        )
    elif config["name"] == "muon":
        rule = optax.contrib.muon(
            rate,
            adam_b1=config["b1"],
            adam_b2=config["b2"],
            adam_learning_rate=lambda count: config["adam_share"] * rate(count),
            weight_decay=config["weight_decay"],
            # Adam has the vectors, none of which is a kernel.
            weight_decay_mask=_kernels,
            muon_weight_dimension_numbers=_matrices,
            # Updates as large as Adam's, so that one learning rate suits every shape.
            consistent_rms=0.2,
        )
    elif config["name"] == "gram_muon":
        rule = optax.partition(
            {
                "matrix": optax.chain(scale_by_gram_muon(), optax.scale_by_learning_rate(rate)),
                "other": optax.adam(
                    lambda count: config["adam_share"] * rate(count), config["b1"], config["b2"]
                ),
            },
            lambda params: jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "other", params),
        )
    else:
        raise UserError(f"optimizer.name is {config['name']!r}, expected {' or '.join(OPTIMIZERS)}")
    if config["clip_norm"]:
        rule = optax.chain(optax.clip_by_global_norm(config["clip_norm"]), rule)
    return _with_statistics(_scaled(rule, tuple(config.get("groups", ()))))


def is_statistic(name: str) -> bool:
    """Whether an array is a running statistic, whose gradient is its exact change."""
    return f".{text_statistics.NAME}." in f".{name}."


def _scaled(
    rule: optax.GradientTransformation, groups: tuple[tuple[str, float], ...]
) -> optax.GradientTransformation:
    """Updates times their group's factor, which is that of the learning rate."""
    if not groups:
        return rule

    def factor(name: str) -> float:
        found = (value for pattern, value in groups if re.search(pattern, name))
        return float(next(found, 1.0))

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = rule.update(grads, state, params)
        return {name: factor(name) * value for name, value in updates.items()}, state

    return optax.GradientTransformation(rule.init, update)


def _with_statistics(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The rule for all but running statistics, which move by their gradient exactly."""

    def learned(arrays: PyTree) -> PyTree:
        if not isinstance(arrays, dict):
            return arrays
        return {name: value for name, value in arrays.items() if not is_statistic(name)}

    def init(params: optax.Params) -> optax.OptState:
        return rule.init(learned(params))

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = rule.update(learned(grads), state, learned(params))
        if isinstance(grads, dict):
            updates = {k: -g if is_statistic(k) else updates[k] for k, g in grads.items()}
        return updates, state

    return optax.GradientTransformation(init, update)


def _kernels(params: PyTree) -> PyTree:
    """True for kernels of layers, which alone decay: no bias, scale, embedding or adapter."""
    if isinstance(params, dict):
        return {name: name.split(".")[-1] == "kernel" for name in params}
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _matrices(params: PyTree) -> PyTree:
    """Kernels (*window, in, out) are matrices from (window, in) to out; Adam takes the rest."""

    def numbers(x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if x.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), (x.ndim - 1,))

    return jax.tree.map(numbers, params)


_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class GramMuonState(NamedTuple):
    """Moving averages of the gradients."""

    averages: Mapping[str, Array]


def scale_by_gram_muon(decay: float = 0.95, rms: float = 0.2) -> optax.GradientTransformation:
    """Replace gradients of kernels (*window, in, out) by orthogonal matrices of a given size.

    Args:
        decay: of the gradients' moving average (Nesterov momentum).
        rms: root mean square of an update's entries.
    """

    def init(params: Mapping[str, Array]) -> GramMuonState:
        return GramMuonState(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Mapping[str, Array], state: GramMuonState, params=None):
        del params
        averages = jax.tree.map(lambda m, g: decay * m + g, state.averages, updates)
        ahead = jax.tree.map(lambda m, g: decay * m + g, averages, updates)
        return _orthogonal(ahead, rms), GramMuonState(averages)

    return optax.GradientTransformation(init, update)


def _orthogonal(tree, rms: float):
    leaves, structure = jax.tree.flatten(tree)
    matrices = [x.reshape(-1, x.shape[-1]) for x in leaves]
    tall = [x if x.shape[0] >= x.shape[1] else x.T for x in matrices]
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, x in enumerate(tall):
        groups.setdefault(x.shape, []).append(number)
    done: list[Array] = [jnp.zeros(())] * len(leaves)
    for shape, members in groups.items():
        made = orthogonalised(jnp.stack([tall[i] for i in members])) * (rms * shape[0] ** 0.5)
        for i, y in zip(members, made, strict=True):
            y = y if matrices[i].shape == shape else y.T
            done[i] = y.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, done)


def orthogonalised(x: Float[Array, "k m n"]) -> Float[Array, "k m n"]:
    """Matrices of the same singular vectors whose singular values are all about 1; m >= n."""
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8)
    gram = jnp.einsum("kmi,kmj->kij", x, x)
    a, b, c = _COEFFICIENTS
    unit = jnp.eye(x.shape[2], dtype=x.dtype)

    def step(_, product: Array) -> Array:
        now = product @ gram @ product
        now = (now + now.swapaxes(1, 2)) / 2
        product = product @ (a * unit + b * now + c * now @ now)
        return (product + product.swapaxes(1, 2)) / 2

    product = jax.lax.fori_loop(0, _STEPS, step, jnp.broadcast_to(unit, gram.shape))
    return x @ product
