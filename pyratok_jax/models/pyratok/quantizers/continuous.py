"""No quantisation at all: the upper bound that ablations compare with. It makes no tokens."""

import dataclasses
from typing import NoReturn

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.models.pyratok.quantizers.base import (
    Codes,
    Latent,
    Latents,
    Level,
    Quantizer,
    TokenizerSizes,
    check_latent_grids,
)
from pyratok_jax.nn.stream_cache import StreamCache
from pyratok_jax.nn.text_attention import TextCondition


@dataclasses.dataclass(frozen=True)
class ContinuousConfig:
    """There is nothing to choose."""

    @classmethod
    def of(cls, sizes: TokenizerSizes) -> "ContinuousConfig":
        """Those of a tokenizer.

        Raises:
            ValueError: see `check_latent_grids`.
        """
        check_latent_grids(sizes, several_levels=False)
        return cls()


class ContinuousLatent(Quantizer):
    """Passes the normalised latent on as it is."""

    makes_tokens = False

    def __init__(self, config: ContinuousConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        """It has no weights."""

    def __call__(
        self,
        stages: tuple[Array, ...],
        target: Latent,
        text: TextCondition | None,
        cache: StreamCache | None = None,
    ) -> tuple[tuple[Level, ...], Latent]:
        """No levels, and the latent itself."""
        return (), target

    def synthesize(self, codes: Codes, cache: StreamCache | None = None) -> NoReturn:
        """Refuse: there are no codes.

        Raises:
            ValueError: always.
        """
        raise ValueError("quantizer none makes no tokens: there is nothing to decode from")

    def fit(
        self,
        latents: Latents,
        *,
        root: Float[np.ndarray, "z z"] | None = None,
        seed: int = 0,
        steps: int = 300,
    ) -> list[float]:
        """Nothing to fit; no error."""
        return [0.0]
