"""Bits of codes flipped at random, as a generator's own mistakes are (Han et al. 2025, Infinity).

A clip's rate is uniform up to the largest one, and grows linearly with time up to the whole of it
at the last latent frame.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32


class Flips(NamedTuple):
    """Which bits are flipped while clips are quantised; one of them does not depend on the others.

    Attributes:
        keys: random key of each clip.
        rate: the largest share of bits, 0 .. 1.
    """

    keys: UInt32[Array | np.ndarray, "b 2"]
    rate: Float[Array, ""] | float


def time_ramp(groups: Int[np.ndarray, " n"], count: int) -> Float[Array, " n"]:
    """Share of a clip's rate in latent frames `groups` out of `count`; 1 in the last."""
    return jnp.asarray((groups + 1) / count, jnp.float32)


def flip_bits(
    codes: Float[Array, "*n bits"], key: PRNGKeyArray, chance: Float[Array, "*_n"]
) -> Float[Array, "*n bits"]:
    """Codes, each bit of which is flipped with the chance of its token."""
    flips = jax.random.uniform(key, codes.shape) < chance[..., None]
    return jnp.where(flips, -codes, codes)


def flipped_level(
    codes: Float[Array, "b t h w bits"],
    flips: Flips,
    level: int,
    groups: Int[np.ndarray, " t"],
    count: int,
) -> Float[Array, "b t h w bits"]:
    """One level's codes with bits flipped.

    Args:
        codes: -1 or +1.
        flips: of the clips.
        level: its number; every level has flips of its own.
        groups: latent frame of each token frame.
        count: latent frames of the clips.
    """
    ramp = time_ramp(groups, count)[:, None, None]

    def of_clip(codes: Array, key: PRNGKeyArray) -> Array:
        rate_key, flip_key = jax.random.split(key)
        chance = flips.rate * jax.random.uniform(rate_key) * ramp
        return flip_bits(codes, jax.random.fold_in(flip_key, level), chance)

    keys = jax.random.wrap_key_data(jnp.asarray(flips.keys), impl="threefry2x32")
    return jax.vmap(of_clip)(codes, keys)
