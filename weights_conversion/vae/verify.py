"""Compare a converted VAE with diffusers' on the same weights."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.checkpoints.modules import build_module, module_arrays
from pyratok_jax.errors import UserError
from pyratok_jax.models.vae_families import build_vae
from pyratok_jax.models.video_vae import VideoVAE
from weights_conversion.vae.converting import Layout, make_plan
from weights_conversion.vae.naming import Converter, to_diffusers_tensors

# Relative L2 error: rounding of float32 sums; a narrower dtype also rounds every weight.
TOLERANCE, ROUNDED_TOLERANCE = 1e-4, 5e-2


def diffusers_vae(converter: Converter, config: Any, arrays: dict[str, np.ndarray]) -> Any:
    """diffusers' VAE in float32 with the values of our arrays.

    Raises:
        UserError: when diffusers or torch is not installed.
    """
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise UserError("--verify needs the reference: pip install diffusers torch") from error
    make = getattr(diffusers, converter.class_names[0])
    model = make(**converter.to_diffusers(config)).eval()
    state = {
        name: torch.from_numpy(np.array(values, np.float32))
        for name, values in to_diffusers_tensors(arrays, converter)
    }
    model.load_state_dict(state)
    return model


def verify(source: TensorSource, layout: Layout, vae: VideoVAE) -> Iterator[str]:
    """Encode and decode noise with both; yields a line per quantity.

    Raises:
        UserError: when an error exceeds the tolerance.
    """
    import torch

    converter, config = layout.converter, vae.config
    plan = make_plan(source, layout, config).check()
    model = diffusers_vae(converter, config, dict(plan.arrays("float32")))
    arrays = module_arrays(vae)
    stored = {info.dtype for info in source.info.values()}
    kernels = {str(value.dtype) for value in arrays.values()}
    limit = TOLERANCE if kernels == {"float32"} or stored == kernels else ROUNDED_TOLERANCE
    same = converter.comparable(config)
    vae = build_module(lambda: build_vae(same, rngs=nnx.Rngs(0)), arrays)
    side = 4 * config.spatial_factor
    shape = (1, 1 + 2 * config.frame_step, side, side + config.spatial_factor, 3)
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    with jax.default_matmul_precision("highest"), torch.no_grad():
        moments = converter.encode(model, torch.from_numpy(video).permute(0, 4, 1, 2, 3))
        z = moments.chunk(2, dim=1)[0]
        decoded = converter.decode(model, z).permute(0, 2, 3, 4, 1).numpy()
        latent = z.permute(0, 2, 3, 4, 1).numpy()
        mean = np.asarray(vae.encode(jnp.asarray(video)).mean)
        ours = np.asarray(vae.decode(jnp.asarray(latent)))
    for name, value, expected in (("encode", mean, latent), ("decode", ours, decoded)):
        error = float(np.linalg.norm(value - expected) / np.linalg.norm(expected))
        if not error <= limit:
            raise UserError(
                f"verification failed: {name} differs from diffusers by {error:.2e} (relative), "
                f"the limit is {limit:.0e}; do not use these weights"
            )
        yield f"verified {name}: relative error {error:.1e} against diffusers (limit {limit:.0e})"
