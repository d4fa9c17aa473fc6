"""Weight-only quantisation of a frozen language model.

Kernels are unpacked where they are used, one layer at a time, and multiplied in the activations'
dtype.
"""

import jax
from flax import nnx

from pyratok_jax.models.language.kernels import GROUPS, quantize_kernel
from pyratok_jax.models.language.layers import Linear
from pyratok_jax.models.language.model import LanguageModel


def quantize_model(model: LanguageModel, bits: int, group: int | None = None) -> LanguageModel:
    """Quantise every linear map of the layers and the output head, in place.

    The embedding and the norms keep their dtype.

    Args:
        model: a frozen model.
        bits: 8 or 4.
        group: inputs per scale; None takes `GROUPS[bits]`, 0 all inputs.

    Returns:
        the same model.
    """
    size = GROUPS[bits] if group is None else group
    pack = jax.jit(quantize_kernel, static_argnums=(1, 2))
    for layer in [module for _, module in nnx.iter_modules(model)]:
        if isinstance(layer, Linear) and layer.scale is None:
            packed = pack(layer.kernel[...], bits, size)
            layer.kernel = nnx.Param(packed.values)
            layer.scale = nnx.data(nnx.Param(packed.scale))
            if packed.offset is not None:
                layer.offset = nnx.data(nnx.Param(packed.offset))
    return model


def parameter_bytes(model: nnx.Module) -> int:
    """Memory of all parameters."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
