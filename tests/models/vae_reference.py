"""Any family's VAE beside diffusers', with the same random weights."""

from typing import Any

import numpy as np
import torch
from flax import nnx

from pyratok_jax.checkpoints.conversion import load_arrays
from pyratok_jax.checkpoints.foreign.sources import sources_from_arrays
from pyratok_jax.checkpoints.partition import build_module
from pyratok_jax.models.video_vae import build_vae
from tests.models.wan_vae.reference import from_torch, noise, quick, relative, to_torch
from weights_conversion.vae.converting import CONVERTERS, Layout, make_plan

__all__ = ["bfloat16_errors", "from_torch", "noise", "our_vae", "parity", "quick", "relative",
           "taps", "to_torch", "torch_vae"]  # fmt: skip


def torch_vae(config, seed: int = 0) -> Any:
    """diffusers' VAE with random weights; norms away from one, biases away from zero."""
    import diffusers

    converter = CONVERTERS[config.family]
    torch.manual_seed(seed)
    make = getattr(diffusers, converter.class_names[0])
    model = make(**converter.to_diffusers(config)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name and value.ndim == 1 and name.endswith("weight"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                value.normal_(0, 0.1)
            elif name.endswith("mix_factor"):
                value.uniform_(-1, 1)
    return model


def our_vae(model, config, **settings):
    """Our VAE with the weights of `model`, through the converter."""
    arrays = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    converter = CONVERTERS[config.family]
    layout = Layout(converter, converter.namings[0], "")
    plan = make_plan(sources_from_arrays(arrays), layout, config)
    return build_module(lambda: build_vae(config, rngs=nnx.Rngs(0), **settings), load_arrays(plan))


def taps(run, *modules) -> tuple[Any, list]:
    """`run()` and what each module gave during it, tuples reduced to their first element."""
    found: list = []

    def keep(_module, _arguments, output):
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    with torch.no_grad():
        result = run()
    for hook in hooks:
        hook.remove()
    return result, found


def parity(encoded, moments, stages) -> float:
    """Largest relative error of a posterior and its stages against torch's."""
    mean, logvar = np.split(from_torch(moments), 2, axis=-1)
    pairs = [(encoded.mean, mean), (encoded.logvar, np.clip(logvar, -30, 20))]
    pairs += [(a, from_torch(b)) for a, b in zip(encoded.stages, stages, strict=True)]
    return max(relative(a, b) for a, b in pairs)


def bfloat16_errors(wide, narrow, video, z) -> tuple[float, float]:
    """Relative errors of encode and decode with bfloat16 activations, over the same weights."""
    halves = ((lambda vae, x: vae.encode(x).mean, video), (lambda vae, z: vae.decode(z), z))
    errors = []
    for run, given in halves:
        expected, found = (np.asarray(quick(run, vae, given), np.float32) for vae in (wide, narrow))
        errors.append(relative(found, expected))
    print("bfloat16: encode {:.1e}, decode {:.1e}".format(*errors))
    return errors[0], errors[1]
