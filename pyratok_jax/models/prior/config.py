"""Sizes of a prior over tokens, the choices that make its family, and how it is sampled."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from pyratok_jax.errors import check_fields
from pyratok_jax.nn.settings import Stride

Order = Literal["raster", "blocks", "masked"]
HeadName = Literal["bits", "factorised", "mbm", "softmax"]
ConditionName = Literal["text", "classes", "none"]
Schedule = Literal["constant", "linear", "cosine"]
# A softmax over more codes is a matrix product and a logits array that no comparison is worth.
MAX_SOFTMAX_BITS = 12
_MAX_SUBTOKEN_BITS = 12


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """Sizes of a prior; the tokenizer gives the first four.

    Attributes:
        strides: strides (time, space) in pixels of each level.
        bits: bits per token; all 2^bits codes are valid.
        latent_stride: strides of the latent grid in pixels.
        latent_channels: of the latent, which `blocks` reads.
        order: "raster" predicts token after token, level after level; "blocks" is causal over
            latent frames and unmasks each level of a frame in parallel; "masked" unmasks each level
            of the whole clip in parallel, with attention in both directions.
        head: distribution of a token: "bits" (independent Bernoullis), "factorised" (sub-tokens one
            after another), "mbm" (bits unmasked in parts) or "softmax" (over all codes).
        width, layers, heads, kv_heads: of the transformer; kv_heads divides heads.
        factors: bits of each sub-token, for "factorised"; they sum to `bits`.
        head_layers: residual layers of the head, for "factorised" and "mbm".
        condition: what the prefix is made of.
        text_width: width of the text embeddings.
        classes: number of classes.
        standardised_text: read text states in units of their own spread (`text_statistics`).
        pooled_text: add a projection of the caption's mean state to every token's input: a short
            way from words to tokens, beside the prefix.
        window: latent frames that `blocks` looks back; 0: all.
        context_patch: latent positions (rows, columns) per token of context, for "blocks".
        theta: longest wavelength of the rotary embedding, over 2 pi.
        remat: recompute the layers' activations in the backward pass.
    """

    strides: tuple[Stride, ...]
    bits: int = 16
    latent_stride: Stride = (4, 8)
    latent_channels: int = 16
    order: str = "blocks"
    head: str = "bits"
    width: int = 768
    layers: int = 12
    heads: int = 12
    kv_heads: int = 4
    factors: tuple[int, ...] = (6, 10)
    head_layers: int = 2
    condition: str = "text"
    text_width: int = 2048
    classes: int = 0
    standardised_text: bool = True
    pooled_text: bool = True
    window: int = 0
    context_patch: int = 2
    theta: float = 10_000.0
    remat: bool = False

    def __post_init__(self) -> None:
        pairs = tuple((int(dt), int(ds)) for dt, ds in self.strides)
        object.__setattr__(self, "strides", pairs)
        object.__setattr__(self, "latent_stride", tuple(self.latent_stride))
        object.__setattr__(self, "factors", tuple(int(n) for n in self.factors))
        for name, allowed in (
            ("order", Order), ("head", HeadName), ("condition", ConditionName)
        ):  # fmt: skip
            names = typing.get_args(allowed)
            if getattr(self, name) not in names:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected {', '.join(names)}")
        for name in ("bits", "width", "layers", "heads", "kv_heads", "text_width", "context_patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if not self.strides:
            raise ValueError("strides is empty: a prior needs at least one level")
        if self.heads % self.kv_heads or self.width % self.heads or self.head_dim % 2:
            raise ValueError(
                f"width {self.width}, heads {self.heads} and kv_heads {self.kv_heads} must divide "
                "one another, into heads of an even width"
            )
        if self.head_dim < 8:
            raise ValueError(f"heads of width {self.head_dim} have no room for four axes; 8 is")
        if self.head == "softmax" and self.bits > MAX_SOFTMAX_BITS:
            raise ValueError(
                f"head softmax has {2**self.bits} outputs at {self.bits} bits; it takes up to "
                f"{MAX_SOFTMAX_BITS} bits, take bits, factorised or mbm"
            )
        if self.head == "factorised" and (
            sum(self.factors) != self.bits or not 1 <= max(self.factors) <= _MAX_SUBTOKEN_BITS
        ):
            raise ValueError(
                f"factors {self.factors} must sum to {self.bits} bits, each of up to "
                f"{_MAX_SUBTOKEN_BITS}"
            )
        if self.window and self.order != "blocks":
            raise ValueError(f"window {self.window} is of the order blocks, not of {self.order}")
        if self.condition == "classes" and self.classes < 1:
            raise ValueError("condition classes needs their number")
        coarsest = max(ds for _, ds in self.strides) // self.latent_stride[1]
        if self.order == "blocks" and coarsest % self.context_patch:
            raise ValueError(
                f"context_patch {self.context_patch} must divide the coarsest level's "
                f"{coarsest} latent positions"
            )

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        """Hidden width of the gated MLPs: 8/3 of the width, in whole tiles of 8."""
        return -(-8 * self.width // 24) * 8

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.strides)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PriorConfig":
        """The configuration written by `to_dict`.

        Raises:
            ValueError: keys that are not fields, or impossible sizes.
        """
        check_fields(values, cls, "the prior's configuration")
        # JSON knows no tuples.
        lists = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
        strides = tuple((int(dt), int(ds)) for dt, ds in values["strides"])
        # Priors from before there were these read the prefix alone, with states as they are.
        values = {"standardised_text": False, "pooled_text": False} | values
        return cls(**(values | lists | {"strides": strides}))


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a clip is drawn. Tuples have a value per level; the last holds for all further levels.

    Attributes:
        steps: parallel steps of each level, in "blocks" and "masked".
        guidance: scale s of classifier-free guidance, logits u + s (c - u); 1: none.
        guidance_schedule: how the scale grows from 1 while a level is drawn, a `Schedule`
            (constant: not).
        temperature: divides the logits; 0 takes the most likely.
        top_p: see `heads.Draw`.
        choice_temperature: of the Gumbel noise on the confidence by which tokens are kept; it
            falls to 0 over the steps of a level (MaskGIT, Chang et al. 2022).
    """

    steps: tuple[int, ...] = (8, 6, 4, 3)
    guidance: float = 1.0
    guidance_schedule: str = "constant"
    temperature: tuple[float, ...] = (1.0,)
    top_p: tuple[float, ...] = (1.0,)
    choice_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"steps {self.steps}: expected at least 1 for each level")
        # Each value by itself: the least and greatest of several may hide a NaN.
        if not self.temperature or not all(0 <= value < 1e3 for value in self.temperature):
            raise ValueError(f"temperature {self.temperature}: expected values from 0")
        if not self.top_p or not all(0 < value <= 1 for value in self.top_p):
            raise ValueError(f"top_p {self.top_p}: expected values above 0, up to 1")
        if not math.isfinite(self.guidance) or self.guidance < 0:
            raise ValueError(f"guidance {self.guidance}: expected a scale from 0")
        if self.guidance_schedule not in typing.get_args(Schedule):
            known = ", ".join(typing.get_args(Schedule))
            raise ValueError(f"guidance_schedule {self.guidance_schedule!r}: expected {known}")
        if not 0 <= self.choice_temperature < 1e3:
            raise ValueError(f"choice_temperature {self.choice_temperature}: expected from 0")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Sampling":
        """The settings in plain values, such as a config's; lists become tuples.

        Raises:
            TypeError, ValueError: keys that are not fields, or impossible values.
        """
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list | tuple) else value
            for name, value in values.items()
        }
        return cls(**plain)

    @property
    def guided(self) -> bool:
        """Whether unconditional logits are needed."""
        return self.guidance != 1

    def steps_of(self, level: int) -> int:
        """Parallel steps of a level."""
        return self.steps[min(level, len(self.steps) - 1)]

    def per_level(self, values: tuple[float, ...], levels: int) -> Float[np.ndarray, " levels"]:
        """A tuple of settings with its last value repeated."""
        chosen = [values[min(level, len(values) - 1)] for level in range(levels)]
        return np.array(chosen, np.float32)
