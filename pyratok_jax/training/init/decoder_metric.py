"""How much a decoder's output changes with each direction of its latent.

A frozen decoder looks at some channels of its latent closely and hardly at others. Codes that are
to rebuild videos, not latents, should spend their bits accordingly.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.nn.lowering import conv_form, current_form

_POSITIONS = (2, 3, 8, 8)  # clips, frames, rows and columns that are looked at, at most
_FLOOR = 0.02  # of the mean, for directions that the decoder does not see at all


def metric_of(
    tokenizer: PyraTok, latents: Float[np.ndarray, "b t h w z"], seed: int
) -> Float[np.ndarray, "z z"]:
    """The metric of a tokenizer's decoder at the beginning of some normalised latents."""
    graph, state = nnx.split(tokenizer)
    # Derivatives that are written out for the form on TPUs know only the backward direction.
    form = "conv3d" if current_form() == "tpu" else current_form()

    def decode(latents: Array) -> Array:
        with conv_form(form):
            return nnx.merge(graph, state).decode(latents)

    clips, frames, rows, columns = _POSITIONS
    few = jnp.asarray(latents[:clips, :frames, :rows, :columns])
    return decoder_metric(decode, few, jax.random.key(seed))


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
