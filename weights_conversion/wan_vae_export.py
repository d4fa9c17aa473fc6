"""Write a VAE as a folder that diffusers reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyratok_jax.errors import UserError
from pyratok_jax.io.atomic import new_folder
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from weights_conversion.wan_vae_keys import to_published

WEIGHTS = "diffusion_pytorch_model.safetensors"


def diffusers_config(config: WanVAEConfig) -> dict[str, Any]:
    """Arguments of diffusers' `AutoencoderKLWan`."""
    values = {key: list(v) if isinstance(v, tuple) else v for key, v in config.to_dict().items()}
    if values.pop("linear_path", False) or values.pop("spatial_downsample", None) is not None:
        raise UserError("this VAE's layout is not one that was published; diffusers cannot hold it")
    values["temperal_downsample"] = values.pop("temporal_downsample")
    values["scale_factor_temporal"] = config.temporal_factor
    values["scale_factor_spatial"] = config.spatial_factor
    return values


def write_diffusers(
    output: str | Path, arrays: Mapping[str, Any], config: WanVAEConfig, *, overwrite: bool = False
) -> Path:
    """Write `config.json` and one safetensors file; the folder appears when it is complete.

    Raises:
        UserError: when the folder exists, or cannot be written.
    """
    from safetensors.numpy import save_file

    output = Path(output)
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; name a new folder or pass --overwrite")
    with new_folder(output) as folder:
        published = dict(to_published(arrays, "diffusers", config))
        save_file(published, folder / WEIGHTS, metadata={"format": "pt"})
        values = {"_class_name": "AutoencoderKLWan", **diffusers_config(config)}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    return output / WEIGHTS
