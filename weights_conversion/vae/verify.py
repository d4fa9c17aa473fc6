"""Compare a converted VAE with diffusers' on the same weights."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from torch import Tensor

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
    converter, config = layout.converter, vae.config
    plan = make_plan(source, layout, config).check()
    model = diffusers_vae(converter, config, dict(plan.arrays("float32")))
    arrays = module_arrays(vae)
    stored = {info.dtype for info in source.info.values()}
    kernels = {str(value.dtype) for value in arrays.values()}
    exact = kernels == {"float32"} or stored == kernels
    same = converter.comparable(config)
    vae = build_module(lambda: build_vae(same, rngs=nnx.Rngs(0)), arrays)
    return compare(
        vae,
        lambda video: converter.encode(model, video).chunk(2, dim=1)[0],
        lambda z: converter.decode(model, z),
        exact=exact,
    )


def compare(
    vae: VideoVAE,
    encode: "Callable[[Tensor], Tensor]",
    decode: "Callable[[Tensor], Tensor]",
    *,
    exact: bool,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> Iterator[str]:
    """Encode and decode noise with the VAE and with diffusers; yields a line per quantity.

    Args:
        vae: ours.
        encode: diffusers' mean (b, z, t, h, w) of a video (b, 3, t, h, w).
        decode: diffusers' video of a latent.
        exact: whether both have the same weights, unrounded.
        limits: to which `decode` clamps.

    Raises:
        UserError: when an error exceeds the tolerance.
    """
    import torch

    config, limit = vae.config, TOLERANCE if exact else ROUNDED_TOLERANCE
    side = 4 * config.spatial_factor
    shape = (1, 1 + 2 * config.frame_step, side, side + config.spatial_factor, 3)
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    with jax.default_matmul_precision("highest"), torch.no_grad():
        z = encode(torch.from_numpy(video).permute(0, 4, 1, 2, 3))
        decoded = decode(z).permute(0, 2, 3, 4, 1).numpy()
        latent = z.permute(0, 2, 3, 4, 1).numpy()
        mean = np.asarray(vae.encode(jnp.asarray(video)).mean)
        ours = np.asarray(jnp.clip(vae.decode(jnp.asarray(latent)), *limits))
    for name, value, expected in (("encode", mean, latent), ("decode", ours, decoded)):
        error = float(np.linalg.norm(value - expected) / np.linalg.norm(expected))
        if not error <= limit:
            raise UserError(
                f"verification failed: {name} differs from diffusers by {error:.2e} (relative), "
                f"the limit is {limit:.0e}; do not use these weights"
            )
        yield f"verified {name}: relative error {error:.1e} against diffusers (limit {limit:.0e})"
