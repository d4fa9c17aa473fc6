"""Compare a converted VAE with the torch reference on the same weights."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.checkpoints.modules import module_shapes
from pyratok_jax.errors import UserError
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from weights_conversion.wan_vae_export import diffusers_config
from weights_conversion.wan_vae_keys import Layout, published_name

# Relative L2 error: rounding of float32 sums; a narrower dtype also rounds every weight.
TOLERANCE, ROUNDED_TOLERANCE = 1e-4, 5e-2


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
    import torch

    model = reference(source, config, layout)
    kernel = vae.encoder.conv_in.kernel[...].dtype
    stored = {info.dtype for info in source.info.values()}
    exact = kernel == jnp.float32 or stored == {kernel.name}
    limit = TOLERANCE if exact else ROUNDED_TOLERANCE
    side = 4 * config.spatial_factor
    shape = (1, 2 * config.temporal_factor + 1, side, side + config.spatial_factor, 3)
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    with jax.default_matmul_precision("highest"), torch.no_grad():
        posterior = model.encode(torch.from_numpy(video).permute(0, 4, 1, 2, 3)).latent_dist
        z = posterior.mean
        decoded = model.decode(z).sample.permute(0, 2, 3, 4, 1).numpy()
        latent = z.permute(0, 2, 3, 4, 1).numpy()
        mean = np.asarray(vae.encode(jnp.asarray(video)).mean)
        ours = np.asarray(jnp.clip(vae.decode(jnp.asarray(latent)), -1, 1))
    for name, value, expected in (("encode", mean, latent), ("decode", ours, decoded)):
        error = float(np.linalg.norm(value - expected) / np.linalg.norm(expected))
        if not error <= limit:
            raise UserError(
                f"verification failed: {name} differs from the torch reference by {error:.2e} "
                f"(relative), the limit is {limit:.0e}; do not use these weights"
            )
        yield f"verified {name}: relative error {error:.1e} against torch (limit {limit:.0e})"
