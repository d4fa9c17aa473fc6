"""Lookup-free quantisation: a code is a vector of signs, its id is those signs read as an integer.

There is no table of codes. A token with `n` bits is one of the 2^n corners {-1, +1}^n; the id has
the first bit as its most significant one, with 1 standing for +1. A vocabulary K smaller than 2^n
keeps the ids below K, and the nearest valid code is found exactly without listing them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from pyratok_jax.models.pyratok.config import MAX_BITS


def hard_sign(z: Float[Array, "*n bits"]) -> Float[Array, "*n bits"]:
    """Signs of the logits as exactly -1 or +1; the sign of 0 is +1. No gradient."""
    return jnp.where(z >= 0, 1.0, -1.0).astype(z.dtype)


def straight_through(
    q: Float[Array, "*n bits"], z: Float[Array, "*n bits"]
) -> Float[Array, "*n bits"]:
    """`q` exactly in the forward pass, the gradient of `z` in the backward pass.

    The sum is written as q + (z - z), whose second part is exactly zero, and not as z + (q - z),
    which rounds: the decoder must see the very values that a file of tokens gives back.
    """
    return jax.lax.stop_gradient(q) + (z - jax.lax.stop_gradient(z))


def quantize(
    z: Float[Array, "*n bits"], vocabulary: int | None = None, surrogate: str = "identity"
) -> Float[Array, "*n bits"]:
    """The nearest valid code of each logit vector, +-1 with a straight-through gradient.

    Args:
        z: logits, any real values.
        vocabulary: number of valid ids K <= 2^bits; None means all of them.
        surrogate: whose gradient the sign has: "identity", or "tanh", under which bits that are
            settled (|z| well above 1) are left alone and the undecided ones move.
    """
    bits = z.shape[-1]
    if vocabulary is None or vocabulary == 2**bits:
        code = hard_sign(z)
    else:
        code = nearest_valid(z, vocabulary)
    return straight_through(code, jnp.tanh(z) if surrogate == "tanh" else z)


def nearest_valid(z: Float[Array, "*n bits"], vocabulary: int) -> Float[Array, "*n bits"]:
    """The code with id < `vocabulary` that has the largest inner product with `z`.

    Every id below K either is K-1, or shares a prefix with K-1 up to one of its set bits, has that
    bit cleared, and is free below it. So at most bits + 1 candidates need to be compared: in each,
    the free bits take the sign of `z`.

    Raises:
        ValueError: when `vocabulary` is not within 1 .. 2^bits.
    """
    bits = z.shape[-1]
    if not 1 <= vocabulary <= 2**bits:
        raise ValueError(f"vocabulary {vocabulary} does not fit {bits} bits: 1 .. {2**bits}")
    fixed, free = code_families(vocabulary, bits)
    codes = jnp.where(free, hard_sign(z)[..., None, :], fixed.astype(z.dtype))
    scores = jnp.sum(codes * z[..., None, :], axis=-1)
    best = jnp.argmax(scores, axis=-1)
    return jnp.take_along_axis(codes, best[..., None, None], axis=-2)[..., 0, :]


def code_families(vocabulary: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Fixed signs and free-bit masks, each (families, bits): disjoint, together all valid ids."""
    last = np.array([(vocabulary - 1) >> (bits - 1 - j) & 1 for j in range(bits)], bool)
    fixed, free = [last], [np.zeros(bits, bool)]
    for position in np.flatnonzero(last):
        signs = last.copy()
        signs[position] = False
        fixed.append(signs)
        free.append(np.arange(bits) > position)
    return np.where(np.stack(fixed), 1.0, -1.0), np.stack(free)


def bits_to_ids(q: Float[Array, "*n bits"]) -> UInt32[Array, "*n"]:
    """Token ids of +-1 codes: bits as a big-endian integer, 1 for +1 (any value >= 0).

    Raises:
        ValueError: for more than 32 bits.
    """
    bits = q.shape[-1]
    if bits > MAX_BITS:
        raise ValueError(f"{bits} bits do not fit a 32-bit token id")
    weights = jnp.asarray([1 << (bits - 1 - j) for j in range(bits)], jnp.uint32)
    return jnp.sum(jnp.where(q >= 0, weights, jnp.uint32(0)), axis=-1, dtype=jnp.uint32)


def ids_to_bits(ids: UInt32[Array, "*n"], bits: int) -> Float[Array, "*n bits"]:
    """The +-1 codes of token ids, float32; inverse of `bits_to_ids`."""
    shifts = jnp.asarray([bits - 1 - j for j in range(bits)], jnp.uint32)
    values = (ids[..., None] >> shifts) & jnp.uint32(1)
    return jnp.where(values == 1, 1.0, -1.0).astype(jnp.float32)
