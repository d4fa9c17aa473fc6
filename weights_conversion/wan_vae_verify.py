"""Compare a converted VAE with diffusers' on the same weights."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.checkpoints.modules import module_shapes
from pyratok_jax.errors import UserError
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from weights_conversion.vae.verify import compare
from weights_conversion.wan_vae_export import diffusers_config
from weights_conversion.wan_vae_keys import Layout, published_name


def reference(source: TensorSource, config: WanVAEConfig, layout: Layout) -> Any:
    """diffusers' VAE in float32, with the weights of `source`.

    Raises:
        UserError: when diffusers or torch is not installed.
    """
    try:
        import torch
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise UserError("--verify needs the reference: pip install diffusers torch") from error
    from flax import nnx

    model: Any = AutoencoderKLWan(**diffusers_config(config))
    model.eval()
    state = {}
    for target in module_shapes(lambda: WanVAE(config, rngs=nnx.Rngs(0))):
        name = layout.prefix + published_name(target, layout.naming, config)
        values = torch.from_numpy(np.array(source.read(name), np.float32))
        state[published_name(target, "diffusers", config)] = values
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.reshape(shapes[key]) for key, value in state.items()})
    return model


def verify(
    source: TensorSource, config: WanVAEConfig, vae: WanVAE, layout: Layout
) -> Iterator[str]:
    """Encode and decode noise with both; yields a line per quantity.

    Raises:
        UserError: when an error exceeds the tolerance.
    """
    model = reference(source, config, layout)
    kernel = vae.encoder.conv_in.kernel[...].dtype
    stored = {info.dtype for info in source.info.values()}
    return compare(
        vae,
        lambda video: model.encode(video).latent_dist.mean,
        lambda z: model.decode(z).sample,
        exact=kernel == jnp.float32 or stored == {kernel.name},
        limits=(-1, 1),
    )
