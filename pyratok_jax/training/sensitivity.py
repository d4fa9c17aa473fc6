"""How much a decoder's output changes with each direction of its latent.

A frozen decoder looks at some channels of its latent closely and hardly at others. Codes that are
to rebuild videos, not latents, should spend their bits accordingly.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

_FLOOR = 0.02  # of the mean, for directions that the decoder does not see at all


def decoder_metric(
    decode: Callable[[Float[Array, "b t h w z"]], Array],
    latents: Float[Array, "b t h w z"],
    key: PRNGKeyArray,
) -> Float[np.ndarray, "z z"]:
    """M for which e M e tells how much an error e of a latent position changes the video.

    M_cd is the mean over positions of the inner product of the decoder's derivatives by channels c
    and d. One forward derivative per channel finds all of it: every channel is disturbed by the
    same random signs over the positions, so that products of different positions cancel.

    Args:
        decode: normalised latents to videos.
        latents: of real clips, a few are enough.
        key: of the signs.

    Returns:
        Positive definite, with diagonal of mean one.
    """
    channels = latents.shape[-1]
    signs = jax.random.rademacher(key, latents.shape[:-1], latents.dtype)

    @jax.jit
    def derivatives(latents: Array, signs: Array) -> Array:
        def by(channel: Array) -> Array:
            disturbed = signs[..., None] * jax.nn.one_hot(channel, channels, dtype=signs.dtype)
            return jax.jvp(decode, (latents,), (disturbed,))[1].reshape(-1)

        return jax.lax.map(by, jnp.arange(channels))

    found = np.asarray(derivatives(latents, signs), np.float64)
    metric = found @ found.T
    metric *= channels / np.trace(metric)
    return (metric + _FLOOR * np.eye(channels)) / (1.0 + _FLOOR)
