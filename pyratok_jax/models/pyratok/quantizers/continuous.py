"""No quantisation at all: the upper bound that ablations compare with. It makes no tokens."""

import dataclasses
from typing import NoReturn

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pyratok_jax.models.pyratok.quantizers import base


@dataclasses.dataclass(frozen=True)
class ContinuousConfig:
    """There is nothing to choose."""

    @classmethod
    def of(cls, sizes: base.TokenizerSizes) -> "ContinuousConfig":
        """Those of a tokenizer.

        Raises:
            ValueError: see `check_latent_grids`.
        """
        base.check_latent_grids(sizes, several_levels=False)
        return cls()


class ContinuousLatent(base.Quantizer):
    """Passes the normalised latent on as it is."""

    makes_tokens = False

    def __init__(self, config: ContinuousConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """It has no weights."""

    def quantize(self, inputs: base.Inputs) -> base.Quantized:
        """No levels, and the latent itself."""
        return (), inputs.target

    def synthesize(self, codes: base.Codes, cache: base.Cache = None) -> NoReturn:
        """Refuse: there are no codes.

        Raises:
            ValueError: always.
        """
        raise ValueError("quantizer none makes no tokens: there is nothing to decode from")

    def fit_to(self, data: base.FitData) -> list[float]:
        """Nothing to fit; no error."""
        return [0.0]
