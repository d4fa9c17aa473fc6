"""The quantisers by name. A new one is a module of this folder and a line here."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pyratok_jax.models.pyratok.quantizers.base import Quantizer, TokenizerSizes


class Kind(NamedTuple):
    """A quantiser's class, and its configuration out of the tokenizer's.

    Attributes:
        quantizer: built as `quantizer(config(sizes), rngs=..., dtype=...)`.
        config: raises a ValueError for sizes that the quantiser cannot have.
    """

    quantizer: "type[Quantizer]"
    config: "Callable[[TokenizerSizes], object]"


def _lapq() -> Kind:
    from pyratok_jax.models.pyratok.quantizers.lapq import LaPQ, LaPQConfig

    return Kind(LaPQ, LaPQConfig.of)


def _continuous() -> Kind:
    from pyratok_jax.models.pyratok.quantizers.final_latent import (
        ContinuousConfig,
        ContinuousLatent,
    )

    return Kind(ContinuousLatent, ContinuousConfig.of)


def _lookup_free(*, residual: bool) -> Kind:
    from pyratok_jax.models.pyratok.quantizers.lookup_free import LookupFreeConfig, LookupFreeLatent

    config = LookupFreeConfig.residual if residual else LookupFreeConfig.single
    return Kind(LookupFreeLatent, config)


def _vector(*, several_levels: bool = True, grouped: bool = False) -> Kind:
    from pyratok_jax.models.pyratok.quantizers.vector import VectorConfig, VectorLatent

    config = functools.partial(VectorConfig.of, several_levels=several_levels, grouped=grouped)
    return Kind(VectorLatent, config)


# Imported when first asked for, so that code that reads the names alone loads no quantiser.
QUANTIZERS: dict[str, Callable[[], Kind]] = {
    # The paper's pyramid; the others quantise the final latent alone, for comparison.
    "lapq": _lapq,
    "none": _continuous,
    "residual": functools.partial(_lookup_free, residual=True),
    "lfq": functools.partial(_lookup_free, residual=False),
    "vq": functools.partial(_vector, several_levels=False),
    "gvq": functools.partial(_vector, grouped=True),
    "rvq": _vector,
}


def quantizer_kind(name: str) -> Kind:
    """The quantiser of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"quantizer {name!r} is not one of {', '.join(QUANTIZERS)}")
    return QUANTIZERS[name]()
