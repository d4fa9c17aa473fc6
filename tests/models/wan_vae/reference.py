"""The torch reference (diffusers) beside our modules, with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKLWan
from flax import nnx

from pyratok_jax.checkpoints.conversion import load_arrays
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.partition import build_module
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from weights_conversion.networks.wan_vae import make_plan
from weights_conversion.networks.wan_vae_published import diffusers_config


def small(is_residual: bool, base_dim: int = 8, blocks: int = 2) -> WanVAEConfig:
    """A published layout with narrow stages; the residual one with patches, as published."""
    patch = 2 if is_residual else None
    return WanVAEConfig(
        base_dim=base_dim,
        decoder_base_dim=base_dim + 4 if is_residual else None,
        z_dim=4,
        num_res_blocks=blocks,
        is_residual=is_residual,
        in_channels=3 * (patch or 1) ** 2,
        out_channels=3 * (patch or 1) ** 2,
        patch_size=patch,
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )


def torch_vae(config: WanVAEConfig, seed: int = 0) -> AutoencoderKLWan:
    """diffusers' VAE with random weights; norms away from one, biases away from zero."""
    torch.manual_seed(seed)
    model = AutoencoderKLWan(**diffusers_config(config)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("gamma"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                value.normal_(0, 0.1)
    return model


def our_vae(model: AutoencoderKLWan, config: WanVAEConfig, **settings) -> WanVAE:
    """Our VAE with the weights of `model`, through the converter."""
    arrays = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    plan = make_plan(sources_from_arrays(arrays), config)
    return build_module(lambda: WanVAE(config, rngs=nnx.Rngs(0), **settings), load_arrays(plan))


def to_torch(x) -> torch.Tensor:
    """Channels-last array to torch's (b, c, t, h, w)."""
    return torch.from_numpy(np.array(x)).permute(0, 4, 1, 2, 3).contiguous()


def from_torch(x: torch.Tensor) -> np.ndarray:
    """The way back."""
    return x.detach().permute(0, 2, 3, 4, 1).numpy()


def noise(*shape: int, seed: int = 0) -> jax.Array:
    """Uniform values in [-1, 1]."""
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32))


def quick(function, module, *arguments):
    """`function(module, *arguments)`, compiled without costly optimisation: compiling dominates."""
    graph, state = nnx.split(module)
    run = jax.jit(
        lambda state, *given: function(nnx.merge(graph, state), *given),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return run(state, *arguments)


def relative(value, expected) -> float:
    """||value - expected|| / ||expected||; infinite when shapes differ."""
    value, expected = np.asarray(value), np.asarray(expected)
    if value.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


def chunked_encode(model: AutoencoderKLWan, video: torch.Tensor):
    """The reference's moments and the outputs of its four stages, over its chunked run."""
    ends = [i for i, block in enumerate(model.encoder.down_blocks) if _is_end(block)]
    if not model.config.is_residual:
        ends.append(len(model.encoder.down_blocks) - 1)
    parts: dict[int, list] = {i: [] for i in ends}
    hooks = [
        model.encoder.down_blocks[i].register_forward_hook(
            lambda _m, _a, out, i=i: parts[i].append(out)
        )
        for i in ends
    ]
    moments = model._encode(video)
    for hook in hooks:
        hook.remove()
    return moments, [torch.cat(parts[i], dim=2) for i in ends]


def _is_end(block) -> bool:
    return type(block).__name__ in ("WanResample", "WanResidualDownBlock")


def chunked_decode(model: AutoencoderKLWan, z: torch.Tensor) -> torch.Tensor:
    """The reference's decoder over its chunked run, without the final clamp."""
    clamp, torch.clamp = torch.clamp, lambda x, **_: x
    try:
        return model._decode(z).sample
    finally:
        torch.clamp = clamp
