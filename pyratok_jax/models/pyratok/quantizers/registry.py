"""The quantisers by name. A new one is a module of this folder and a line here."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pyratok_jax.models.pyratok.quantizers.base import Quantizer, TokenizerSizes
from pyratok_jax.models.pyratok.quantizers.final_latent import ContinuousConfig, ContinuousLatent
from pyratok_jax.models.pyratok.quantizers.lapq import LaPQ, LaPQConfig
from pyratok_jax.models.pyratok.quantizers.lookup_free import LookupFreeConfig, LookupFreeLatent
from pyratok_jax.models.pyratok.quantizers.vector import VectorConfig, VectorLatent


class Kind(NamedTuple):
    """A quantiser's class, and its configuration out of the tokenizer's.

    Attributes:
        quantizer: built as `quantizer(config(sizes), rngs=..., dtype=...)`.
        config: raises a ValueError for sizes that the quantiser cannot have.
    """

    quantizer: type[Quantizer]
    config: Callable[[TokenizerSizes], object]


QUANTIZERS: dict[str, Kind] = {
    # The paper's pyramid; the others quantise the final latent alone, for comparison.
    "lapq": Kind(LaPQ, LaPQConfig.of),
    "none": Kind(ContinuousLatent, ContinuousConfig.of),
    "residual": Kind(LookupFreeLatent, LookupFreeConfig.residual),
    "lfq": Kind(LookupFreeLatent, LookupFreeConfig.single),
    "vq": Kind(VectorLatent, functools.partial(VectorConfig.of, several_levels=False)),
    "gvq": Kind(VectorLatent, functools.partial(VectorConfig.of, grouped=True)),
    "rvq": Kind(VectorLatent, VectorConfig.of),
}


def quantizer_kind(name: str) -> Kind:
    """The quantiser of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"quantizer {name!r} is not one of {', '.join(QUANTIZERS)}")
    return QUANTIZERS[name]


def build_quantizer(
    sizes: TokenizerSizes, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
) -> Quantizer:
    """The quantiser that `sizes.quantizer` names, with random weights.

    Raises:
        ValueError: no such quantiser, or sizes that it cannot have.
    """
    kind = quantizer_kind(sizes.quantizer)
    build: Callable[..., Quantizer] = kind.quantizer
    return build(kind.config(sizes), rngs=rngs, dtype=dtype)
