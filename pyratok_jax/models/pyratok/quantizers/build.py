"""The quantisers of the final latent by name."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pyratok_jax.models.pyratok.quantizers.continuous import ContinuousLatent
from pyratok_jax.models.pyratok.quantizers.lookup_free import LookupFreeLatent
from pyratok_jax.models.pyratok.quantizers.vector import VectorLatent
from pyratok_jax.nn.grids import Stride

# Name -> whether it can have more than one level.
QUANTIZERS: dict[str, bool] = {
    "none": False,  # the continuous latent, without tokens
    "residual": True,  # lookup-free stages on what is left, scale 2^-i
    "lfq": False,  # one lookup-free stage
    "vq": False,  # one codebook of vectors
    "gvq": True,  # one codebook per part of the features
    "rvq": True,  # codebooks on what is left
}


# Both are called with a normalised latent and the text, give levels and the latent that their codes
# stand for, and have `synthesize(codes)`.
LatentQuantizer = LookupFreeLatent | VectorLatent | ContinuousLatent


def check_levels(name: str, grids: tuple[Stride, ...], latent_stride: Stride) -> None:
    """Refuse grids that a quantiser of the final latent cannot have.

    Raises:
        ValueError: unknown name, unequal grids, a time stride that is not the latent's, or too
            many levels.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"quantizer {name!r} is not lapq or one of {', '.join(QUANTIZERS)}")
    if len(set(grids)) != 1 or grids[0][0] != latent_stride[0]:
        raise ValueError(
            f"quantizer {name} needs the same grid at every level, with the latent's time stride "
            f"of {latent_stride[0]}: grids={(latent_stride,) * len(grids)} for example, not {grids}"
        )
    if len(grids) > 1 and not QUANTIZERS[name]:
        raise ValueError(f"quantizer {name} has one level, but grids names {len(grids)}")


def build_quantizer(
    name: str,
    *,
    grids: tuple[Stride, ...],
    latent_stride: Stride,
    channels: int,
    bits: int,
    vocabulary: int | None,
    code_width: int,
    text_width: int | None,
    hidden: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
) -> LatentQuantizer:
    """A quantiser with random weights; see the classes for the arguments.

    `residual` quantises the latent itself where a token has a bit for each of its values.

    Raises:
        ValueError: see `check_levels`.
    """
    check_levels(name, grids, latent_stride)
    if name == "none":
        return ContinuousLatent()
    patch = grids[0][1] // latent_stride[1]
    shared: dict[str, Any] = {
        "channels": channels,
        "patch": patch,
        "depth": len(grids),
        "bits": bits,
        "vocabulary": vocabulary,
        "hidden": hidden,
        "rngs": rngs,
        "dtype": dtype,
    }
    if name in ("residual", "lfq"):
        direct = name == "residual" and patch == 1 and bits == channels
        return LookupFreeLatent(**shared, text_width=text_width, project=not direct)
    return VectorLatent(**shared, code_width=code_width, grouped=name == "gvq")
