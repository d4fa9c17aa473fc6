"""The pull-back (Gauss-Newton) metric of the decoder on its latent, from Rademacher probes.

A frozen decoder is sensitive to some channels of its latent and hardly to others. Codes should
spend their bits on what changes the video, so errors of the latent are measured by this metric:
M = mean over positions of J'J, with J the Jacobian of the video by the latent at a position.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.nn.lowering import conv_lowering, current_lowering

_POSITIONS = (2, 3, 8, 8)  # clips, frames, rows and columns of the latents that are used, at most
_FLOOR = 0.02  # of the mean eigenvalue, added for directions to which the decoder is blind


def metric_of(
    tokenizer: PyraTok, latents: Float[np.ndarray, "b t h w z"], seed: int
) -> Float[np.ndarray, "z z"]:
    """The metric of a tokenizer's decoder at the first positions of some normalised latents."""
    graph, state = nnx.split(tokenizer)
    # The custom VJPs of the lowering for TPUs have no forward-mode derivative.
    lowering = "conv3d" if current_lowering() == "tpu" else current_lowering()

    def decode(latents: Array) -> Array:
        with conv_lowering(lowering):
            return nnx.merge(graph, state).decode(latents)

    clips, frames, rows, columns = _POSITIONS
    few = jnp.asarray(latents[:clips, :frames, :rows, :columns])
    return decoder_metric(decode, few, jax.random.key(seed))


def decoder_metric(
    decode: Callable[[Float[Array, "b t h w z"]], Array],
    latents: Float[Array, "b t h w z"],
    key: PRNGKeyArray,
) -> Float[np.ndarray, "z z"]:
    """Estimate M: e'Me is the squared change of the video by an error e at a latent position.

    One Jacobian-vector product per channel is enough. The probe of channel c is a random sign at
    every position in that channel, the same signs for all channels; with v_c the product, the
    inner product of v_c and v_d has the expectation sum over positions of (J'J)_cd, since cross
    terms of different positions have expectation zero.

    Args:
        decode: normalised latents to videos.
        latents: of real clips; a few are enough.
        key: of the signs.

    Returns:
        symmetric positive definite, its trace the number of channels, its smallest eigenvalue at
        least about 0.02.
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
