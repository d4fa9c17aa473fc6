"""Custom VJPs for TPUs: the values of automatic differentiation for about half the cycles.

The automatic VJP of a convolution over strips (`halo.cut`) convolves all rows that the forward pass
read, halo included, and adds the halo's gradient back to the neighbours. Here the cotangent fetches
its own halo, which leaves a convolution like the forward one. The automatic VJP of the norm keeps
masks as large as the activations for a case that only zero vectors meet.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from pyratok_jax.nn.fast_convs import FEW, conv_in_blocks
from pyratok_jax.nn.halo import with_halo
from pyratok_jax.nn.lowering import channel_sums, conv3d
from pyratok_jax.nn.trace import TraceOptions, tracing

TINY = 1e-24  # lower bound of a sum of squares


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def causal(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c d"], options: TraceOptions
) -> Float[Array, "b t h w d"]:
    """Causal convolution of the same size, zero padding; windows of odd height and width.

    Args:
        x: the clip, as strips or a device's rows where `options` say so.
        kernel: weights.
        options: `trace.current()`; the backward pass is traced later, with the same ones.
    """
    kt, kh, kw = kernel.shape[:3]
    x, rows = with_halo(x, (kh // 2, kh // 2))
    padding = ((kt - 1, 0), rows, (kw // 2, kw // 2))
    if kernel.shape[-1] <= FEW:
        return conv_in_blocks(x, kernel, padding)
    return conv3d(x, kernel, padding)


def _flipped_transposed(kernel: Float[Array, "kt kh kw c d"]) -> Float[Array, "kt kh kw d c"]:
    """The kernel of the input gradient: window flipped, input and output channels transposed.

    Transposed by a product with a unit matrix. XLA fuses a plain transposition into the
    convolution, which repeats it at every step over its output, for half of its time.
    """
    unit = jnp.eye(kernel.shape[3], dtype=kernel.dtype)
    transposed = jnp.einsum("thwcd,ce->thwde", jnp.flip(kernel, (0, 1, 2)), unit)
    return with_layout_constraint(lax.optimization_barrier(transposed), Layout((0, 1, 2, 3, 4)))


def _causal_forward(
    x: Array, kernel: Array, options: TraceOptions
) -> tuple[Array, tuple[Array, Array]]:
    return causal(x, kernel, options), (x, kernel)


def _causal_backward(
    options: TraceOptions, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    kt, kh, kw = kernel.shape[:3]
    with tracing(options):
        g, rows = with_halo(cotangent, (kh // 2, kh // 2))
        # Anti-causal: the gradient of an output reaches its frame and the kt - 1 before it.
        dx = conv3d(g, _flipped_transposed(kernel), ((0, kt - 1), rows, (kw // 2, kw // 2)))
        x, rows = with_halo(x, (kh // 2, kh // 2))
        padding = ((kt - 1, 0), rows, (kw // 2, kw // 2))
        (dkernel,) = jax.vjp(lambda k: conv3d(x, k, padding), kernel)[1](cotangent)
    return dx, dkernel


causal.defvjp(_causal_forward, _causal_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def normalise(
    x: Float[Array, "b t h w c"],
    gamma: Float[Array, "c"],
    features: int,
    activate: bool,
    options: TraceOptions,
) -> Float[Array, "b t h w c"]:
    """x / ||x|| * sqrt(features) * gamma, and SiLU of it where `activate`; same dtype as `x`.

    `options` are `trace.current()`, under which the backward pass is traced too.
    """
    y = _normal(x, gamma, features)[0]
    return (jax.nn.silu(y) if activate else y).astype(x.dtype)


def _normal(x: Array, gamma: Array, features: int) -> tuple[Array, Array, Array]:
    """The normalised value, the inverse norm and the squared norm, float32."""
    y = x.astype(jnp.float32)
    squares = _sums(y * y, x.dtype)
    scale = lax.rsqrt(jnp.maximum(squares, TINY))
    return y * scale * (features**0.5) * gamma, scale, squares


def _sums(x: Array, dtype: jnp.dtype) -> Array:
    return channel_sums(x) if dtype == jnp.bfloat16 else jnp.sum(x, axis=-1, keepdims=True)


def _normalise_forward(
    x: Array, gamma: Array, features: int, activate: bool, options: TraceOptions
) -> tuple[Array, tuple[Array, Array]]:
    return normalise(x, gamma, features, activate, options), (x, gamma)


def _normalise_backward(
    features: int,
    activate: bool,
    options: TraceOptions,
    residuals: tuple[Array, Array],
    cotangent: Array,
) -> tuple[Array, Array]:
    x, gamma = residuals
    with tracing(options):
        y, scale, squares = _normal(x, gamma, features)
        g = cotangent.astype(jnp.float32)
        if activate:
            gate = jax.nn.sigmoid(y)
            g = g * gate * (1.0 + y * (1.0 - gate))
        unit = x.astype(jnp.float32) * scale
        dgamma = jnp.sum(g * unit, axis=(0, 1, 2, 3)) * features**0.5
        g = g * (gamma * features**0.5)
        radial = _sums(g * unit, x.dtype)
        # Where the squared norm is clamped to TINY it is constant: no radial term.
        dx = scale * (g - jnp.where(squares > TINY, unit * radial, 0.0))
    return dx.astype(x.dtype), dgamma


normalise.defvjp(_normalise_forward, _normalise_backward)
