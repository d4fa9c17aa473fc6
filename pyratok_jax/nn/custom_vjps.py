"""Derivatives written out for TPUs: what automatic ones compute, for about half the cycles.

The automatic derivative of a convolution over strips (`height.cut`) convolves all rows that the
forward pass saw, borders too, and adds those back to their neighbours. Here the gradient fetches
its own borders, and what is left is a convolution like the forward one. That of a norm compares
and keeps masks as large as the activations, for a case that only zero vectors meet.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from pyratok_jax.nn.halo import with_borders, within
from pyratok_jax.nn.lowering import channel_sums, conv3d, conv_form
from pyratok_jax.nn.polyphase import FEW, conv_in_blocks

Place = tuple[str | None, int]
TINY = 1e-24  # of a sum of squares


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def causal(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c d"], place: Place
) -> Float[Array, "b t h w d"]:
    """Causal convolution of the same size, zero padding; windows of odd height and width.

    Args:
        x: the clip, as strips or a device's rows where `place` says so.
        kernel: weights.
        place: `height.here()`.
    """
    kt, kh, kw = kernel.shape[:3]
    x, rows = with_borders(x, (kh // 2, kh // 2))
    padding = ((kt - 1, 0), rows, (kw // 2, kw // 2))
    if kernel.shape[-1] <= FEW:
        return conv_in_blocks(x, kernel, padding)
    return conv3d(x, kernel, padding)


def _turned(kernel: Float[Array, "kt kh kw c d"]) -> Float[Array, "kt kh kw d c"]:
    """The kernel of the gradient: window reversed, inputs and outputs exchanged.

    Exchanged by a product with a unit matrix. A plain transposition the compiler leaves to the
    convolution, which does it anew at every step over its output, for half its time.
    """
    unit = jnp.eye(kernel.shape[3], dtype=kernel.dtype)
    turned = jnp.einsum("thwcd,ce->thwde", jnp.flip(kernel, (0, 1, 2)), unit)
    return with_layout_constraint(lax.optimization_barrier(turned), Layout((0, 1, 2, 3, 4)))


def _causal_forward(x: Array, kernel: Array, place: Place) -> tuple[Array, tuple[Array, Array]]:
    return causal(x, kernel, place), (x, kernel)


def _causal_backward(place: Place, seen: tuple[Array, Array], given: Array) -> tuple[Array, Array]:
    x, kernel = seen
    kt, kh, kw = kernel.shape[:3]
    with within(*place), conv_form("tpu"):
        borders, rows = with_borders(given, (kh // 2, kh // 2))
        turned = _turned(kernel)
        # Time runs backward: an output's gradient reaches this frame and the kt - 1 before it.
        to_x = conv3d(borders, turned, ((0, kt - 1), rows, (kw // 2, kw // 2)))
        x, rows = with_borders(x, (kh // 2, kh // 2))
        padding = ((kt - 1, 0), rows, (kw // 2, kw // 2))
        (to_kernel,) = jax.vjp(lambda k: conv3d(x, k, padding), kernel)[1](given)
    return to_x, to_kernel


causal.defvjp(_causal_forward, _causal_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def normalise(
    x: Float[Array, "b t h w c"], gamma: Float[Array, "c"], features: int, activate: bool
) -> Float[Array, "b t h w c"]:
    """x / ||x|| * sqrt(features) * gamma, and SiLU of it where `activate`; same dtype as `x`."""
    y = _normal(x, gamma, features)[0]
    return (jax.nn.silu(y) if activate else y).astype(x.dtype)


def _normal(x: Array, gamma: Array, features: int) -> tuple[Array, Array, Array]:
    """The normalised value, the inverse length and the square of the length, float32."""
    y = x.astype(jnp.float32)
    squares = _sums(y * y, x.dtype)
    scale = lax.rsqrt(jnp.maximum(squares, TINY))
    return y * scale * (features**0.5) * gamma, scale, squares


def _sums(x: Array, dtype: jnp.dtype) -> Array:
    return channel_sums(x) if dtype == jnp.bfloat16 else jnp.sum(x, axis=-1, keepdims=True)


def _normalise_forward(
    x: Array, gamma: Array, features: int, activate: bool
) -> tuple[Array, tuple[Array, Array]]:
    return normalise(x, gamma, features, activate), (x, gamma)


def _normalise_backward(
    features: int, activate: bool, seen: tuple[Array, Array], given: Array
) -> tuple[Array, Array]:
    x, gamma = seen
    with conv_form("tpu"):
        y, scale, squares = _normal(x, gamma, features)
        given = given.astype(jnp.float32)
        if activate:
            share = jax.nn.sigmoid(y)
            given = given * share * (1.0 + y * (1.0 - share))
        unit = x.astype(jnp.float32) * scale
        to_gamma = jnp.sum(given * unit, axis=(0, 1, 2, 3)) * features**0.5
        given = given * (gamma * features**0.5)
        along = _sums(given * unit, x.dtype)
        # Below TINY the length does not count.
        to_x = scale * (given - jnp.where(squares > TINY, unit * along, 0.0))
    return to_x.astype(x.dtype), to_gamma


normalise.defvjp(_normalise_forward, _normalise_backward)
