"""The frozen parts of a tokenizer, by specification: shipped, inside a package, or converted.

A specification is `builtin:NAME` or a folder written by one of the `weights_conversion` commands.
"""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pyratok_jax.errors import UserError
from pyratok_jax.models.language.model import LanguageModel
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from weights_conversion.core import load_checkpoint, read_config, weights_hash

DEMO_BACKBONE = "builtin:demo-backbone"


class Backbone(NamedTuple):
    """A VAE's sizes, its arrays by name (`encoder.conv_in.kernel`), and their hash."""

    config: WanVAEConfig
    arrays: Mapping[str, Any]
    sha256: str


class Language(NamedTuple):
    """A language model, its tokenizer, and a hash of where it came from."""

    model: LanguageModel
    tokenizer: Any
    sha256: str


def load_backbone(spec: str, *, sharding: Any = None) -> Backbone:
    """A pretrained VAE.

    Args:
        spec: "builtin:demo-backbone", the small VAE shipped with this package, or a folder
            written by `weights_conversion.wan_vae`.
        sharding: as `weights_conversion.core.load_checkpoint` takes it.

    Raises:
        UserError: no such weights, or not a VAE's.
    """
    if spec.startswith("builtin:"):
        return _shipped(spec)
    record = read_config(spec, "wan_vae")
    config = WanVAEConfig.from_dict(record["config"])
    shapes = {name: tuple(shape) for name, shape in record["shapes"].items()}
    arrays = load_checkpoint(spec, shapes, sharding=sharding)
    return Backbone(config, arrays, record["sha256"])


def _shipped(spec: str) -> Backbone:
    import safetensors
    import safetensors.numpy

    name = spec.removeprefix("builtin:").replace("-", "_")
    path = Path(str(resources.files("pyratok_jax") / "assets" / f"{name}.safetensors"))
    if not path.is_file():
        raise UserError(f"no shipped backbone {spec}; there is {DEMO_BACKBONE}")
    with safetensors.safe_open(path, "np") as file:
        config = WanVAEConfig.from_dict(json.loads(file.metadata()["config"]))
    arrays = {
        key: value.astype(np.float32) for key, value in safetensors.numpy.load_file(path).items()
    }
    return Backbone(config, arrays, weights_hash(arrays))


def write_backbone(
    path: Path, config: WanVAEConfig, arrays: Mapping[str, np.ndarray], dtype: Any = np.float16
) -> None:
    """Write a VAE as one safetensors file with its sizes in the header; replaced when whole."""
    import os

    import safetensors.numpy

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    stored = {name: np.ascontiguousarray(array, dtype) for name, array in arrays.items()}
    safetensors.numpy.save_file(stored, scratch, {"config": json.dumps(config.to_dict())})
    os.replace(scratch, path)


def load_language(spec: str, *, dtype: Any = None, remat: str = "none") -> Language:
    """A pretrained language model: "builtin:smollm2", or a converted folder.

    Raises:
        UserError: no such weights, or not a language model's.
    """
    from weights_conversion.language_model import BUILTIN, load_language_model

    model, tokenizer = load_language_model(spec, dtype=dtype, remat=remat)
    if spec.startswith("builtin:"):
        sha256 = BUILTIN[spec.removeprefix("builtin:")][2]
    else:
        sha256 = read_config(spec, "language_model")["sha256"]
    return Language(model, tokenizer, sha256)
