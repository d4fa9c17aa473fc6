"""Optimizers and learning-rate schedules by configuration."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from pyratok_jax.errors import UserError
from pyratok_jax.models import text_statistics
from pyratok_jax.training.gram_muon import scale_by_gram_muon

OPTIMIZERS = ("adamw", "muon", "gram_muon")
SCHEDULES = ("cosine", "constant", "trapezoid")


def learning_rate(config: Mapping[str, Any], steps: int) -> optax.Schedule:
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


def make_optimizer(config: Mapping[str, Any], steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, or Muon with Adam for arrays that are not matrices.

    "gram_muon" is Muon with fewer and shorter products, see `gram_muon`.

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
