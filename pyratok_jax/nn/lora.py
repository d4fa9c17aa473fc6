"""Low-rank adapters (LoRA, arXiv 2106.09685) for convolutions and linear layers.

An adapter changes the kernel, not the layer's output: kernel + (alpha / rank) * A B. The layer
still runs one convolution, and with B = 0, as at the start, it is exactly the frozen layer.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

M = TypeVar("M", bound=nnx.Module)


class LoRAParam(nnx.Param):
    """A trainable adapter weight; the type by which training finds it inside a frozen network."""


class LoRA(nnx.Module):
    """The low-rank update of one kernel whose last two axes are (in, out).

    A keeps the kernel's window (a convolution to `rank` channels), B is the 1x1 map to the output
    channels, so that the product has the kernel's shape.
    """

    def __init__(self, kernel_shape: tuple[int, ...], rank: int, alpha: float, *, rngs: nnx.Rngs):
        *window, inputs, outputs = kernel_shape
        self.scale = alpha / rank
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
        self.a = LoRAParam(init(rngs.params(), (*window, inputs, rank), jnp.float32))
        self.b = LoRAParam(jnp.zeros((rank, outputs), jnp.float32))

    def __call__(self, kernel: Float[Array, "..."]) -> Float[Array, "..."]:
        """The adapted kernel, same shape and dtype as the given one."""
        update = jnp.einsum("...ir,ro->...io", self.a[...], self.b[...])
        return (kernel.astype(jnp.float32) + self.scale * update).astype(kernel.dtype)


def add_lora(module: nnx.Module, rank: int, alpha: float, *, rngs: nnx.Rngs) -> int:
    """Give every layer below `module` that has a `kernel` and an `adapter` slot a LoRA, in place.

    Layers are visited in the order of their paths, so that the same seed gives the same adapters.

    Returns:
        the number of adapted layers.
    """
    layers = _adaptable(module)
    for layer in layers:
        layer.adapter = nnx.data(LoRA(layer.kernel.shape, rank, alpha, rngs=rngs))
    return len(layers)


def without_adapters(module: M) -> M:
    """A view of `module` without its adapters: the frozen network, sharing every array.

    It gives the reference posterior for the drift loss inside the same traced step.
    """
    graphdef, state = nnx.split(module)
    view = nnx.merge(graphdef, jax.tree.map(lambda x: x, state))
    for layer in _adaptable(view):
        layer.adapter = None
    return view


def _adaptable(module: nnx.Module) -> list:
    found = [
        (path, node)
        for path, node in nnx.iter_modules(module)
        if hasattr(node, "adapter") and hasattr(node, "kernel")
    ]
    return [node for _, node in sorted(found, key=lambda item: tuple(map(str, item[0])))]
