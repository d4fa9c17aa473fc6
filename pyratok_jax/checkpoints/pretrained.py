"""The frozen parts of a tokenizer, by specification: shipped, inside a package, or converted.

A specification is `builtin:NAME`, a folder written by one of the `weights_conversion` commands, or
such a folder on the Hub, `hf://ORG/NAME[@REVISION][/SUBFOLDER]` (`hub`).
"""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from pyratok_jax.checkpoints.hub import DESCRIPTIONS, local_folder
from pyratok_jax.checkpoints.partition import build_module, module_shapes
from pyratok_jax.checkpoints.verification import weights_hash
from pyratok_jax.checkpoints.weights import load_checkpoint, read_config
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import write_bytes
from pyratok_jax.io.documents import check_sizes, refusing
from pyratok_jax.models.dino import Dino, DinoConfig
from pyratok_jax.models.language.kernels import GROUPS
from pyratok_jax.models.language.model import LanguageModel, quantize_model
from pyratok_jax.models.vae_config import VideoVAEConfig
from pyratok_jax.models.vae_families import config_from_dict, kinds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pyratok_jax.checkpoints.weights import Placement

_STEP = "#step"  # Ends the name of what int8 values are multiples of.
# Kernels with few large values among small ones, as those of a linear code, would lose more.
_MOST_MOVED = 0.02
DEMO_BACKBONE = "builtin:demo-backbone"
DEMO_VISION = "builtin:demo-vision"


class Backbone(NamedTuple):
    """A VAE's sizes, its arrays by name (`encoder.conv_in.kernel`), and their hash."""

    config: VideoVAEConfig
    arrays: Mapping[str, jax.Array | np.ndarray]
    sha256: str


class Language(NamedTuple):
    """A language model, its tokenizer, and a hash of where it came from."""

    model: LanguageModel
    tokenizer: "PreTrainedTokenizerBase"
    sha256: str


def load_backbone(spec: str, *, sharding: "Placement" = None) -> Backbone:
    """A pretrained VAE.

    Args:
        spec: "builtin:demo-backbone", the small VAE shipped with this package, or a folder
            written by `weights_conversion.vae`.
        sharding: see `weights.Placement`.

    Raises:
        UserError: no such weights, or not a VAE's.
    """
    if spec.startswith("builtin:"):
        sizes, arrays = _shipped(spec, DEMO_BACKBONE)
        return Backbone(config_from_dict(sizes), arrays, weights_hash(arrays))
    spec = str(local_folder(spec))
    record = read_config(spec, *kinds())
    config = _vae_config(spec, record)
    shapes = {name: tuple(shape) for name, shape in record["shapes"].items()}
    return Backbone(config, load_checkpoint(spec, shapes, sharding=sharding), record["sha256"])


def backbone_config(spec: str) -> VideoVAEConfig:
    """The sizes that `load_backbone` gives, without reading any weights.

    Raises:
        UserError: no such weights, or not a VAE's.
    """
    if spec.startswith("builtin:"):
        return config_from_dict(read_weights_config(_shipped_file(spec, DEMO_BACKBONE)))
    spec = str(local_folder(spec, only=DESCRIPTIONS))
    return _vae_config(spec, read_config(spec, *kinds()))


def _vae_config(spec: str, record: Mapping[str, Json]) -> VideoVAEConfig:
    with refusing(f"{spec}/config.json"):
        config = config_from_dict({"family": kinds()[record["kind"]], **record["config"]})
    return check_sizes(config, f"{spec}/config.json")


def check_vision(spec: str) -> None:
    """Refuse what `load_vision` would, without reading any weights.

    Raises:
        UserError: no such weights, or not a DINO network's.
    """
    if spec.startswith("builtin:"):
        _shipped_file(spec, DEMO_VISION)
    else:
        read_config(local_folder(spec, only=DESCRIPTIONS), "dino")


def check_language(spec: str) -> None:
    """Refuse what `load_language` would, without reading any weights.

    Raises:
        UserError: no such weights, or not a language model's.
    """
    if not spec.startswith("builtin:") and not Path(spec).is_file():
        read_config(local_folder(spec, only=DESCRIPTIONS), "language_model")


def load_vision(spec: str, *, dtype: DTypeLike = jnp.float32) -> Dino:
    """The frozen network of the DINO terms.

    Args:
        spec: "builtin:demo-vision", a small network of DINOv3's architecture shipped with this
            package, or a folder written by `weights_conversion.dino`.
        dtype: of activations.

    Raises:
        UserError: no such weights, or not a DINO network's.
    """
    if not spec.startswith("builtin:"):
        return load_dino(spec, dtype=dtype)
    sizes, arrays = _shipped(spec, DEMO_VISION)
    config = DinoConfig(**sizes)
    return build_module(lambda: Dino(config, rngs=nnx.Rngs(0), dtype=dtype), arrays)


def load_dino(path: str | Path, *, dtype: DTypeLike = jnp.float32) -> Dino:
    """The network of a folder written by `weights_conversion.dino`, in the stored dtype.

    Raises:
        UserError: no such folder, or one of another kind.
    """
    path = local_folder(path)
    with refusing(f"{path}/config.json"):
        config = DinoConfig(**read_config(path, "dino")["config"])
    config = check_sizes(config, f"{path}/config.json")
    arrays = load_checkpoint(path, module_shapes(lambda: Dino(config, rngs=nnx.Rngs(0))))
    return build_module(lambda: Dino(config, rngs=nnx.Rngs(0), dtype=dtype), arrays)


def _shipped(spec: str, known: str) -> tuple[dict[str, Json], dict[str, np.ndarray]]:
    """Sizes and arrays, float32, of weights inside this package."""
    return read_weights(_shipped_file(spec, known))


def _shipped_file(spec: str, known: str) -> Path:
    if spec != known:
        raise UserError(f"no shipped weights {spec}; there is {known}")
    name = spec.removeprefix("builtin:").replace("-", "_")
    return Path(str(resources.files("pyratok_jax") / "assets" / f"{name}.safetensors"))


def read_weights_config(path: Path) -> dict[str, Json]:
    """The sizes in the header of a file that `write_weights` wrote."""
    import safetensors

    with safetensors.safe_open(path, "np") as file:
        sizes: dict[str, Json] = json.loads(file.metadata()["config"])
    return sizes


def read_weights(path: Path) -> tuple[dict[str, Json], dict[str, np.ndarray]]:
    """Sizes and float32 arrays of a file that `write_weights` wrote."""
    import safetensors.numpy

    sizes = read_weights_config(path)
    stored = safetensors.numpy.load_file(path)
    arrays = {k: x.astype(np.float32) for k, x in stored.items() if not k.endswith(_STEP)}
    return sizes, {
        k: x * stored[k + _STEP] if k + _STEP in stored else x for k, x in arrays.items()
    }


def write_weights(
    path: Path, sizes: Mapping[str, Json], arrays: Mapping[str, np.ndarray], *, bits: int = 16
) -> None:
    """Write a module as one safetensors file with its sizes in the header, atomically.

    Args:
        path: the file.
        sizes: plain JSON.
        arrays: by name.
        bits: 16 stores float16; 8 stores kernels (arrays of two axes and more, of 4,096 values and
            more) as int8 multiples of a float32 step for each output channel, where that moves
            them by at most `_MOST_MOVED` of their root mean square.
    """
    import safetensors.numpy

    stored: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        stored[name] = np.ascontiguousarray(array, np.float16)
        if bits == 8 and array.ndim > 1 and array.size >= 4096:
            step = np.abs(array).max(axis=tuple(range(array.ndim - 1))).astype(np.float32) / 127
            step = np.where(step > 0, step, np.float32(1))
            rounded = np.rint(array / step)
            if np.linalg.norm(rounded * step - array) <= _MOST_MOVED * np.linalg.norm(array):
                stored[name], stored[name + _STEP] = rounded.astype(np.int8), step
    write_bytes(path, safetensors.numpy.save(stored, {"config": json.dumps(dict(sizes))}))


def load_language(
    spec: str, *, dtype: DTypeLike | None = None, remat: str = "none", bits: int = 0
) -> Language:
    """A pretrained language model: "builtin:smollm2", "builtin:gemma3-270m", or a converted folder.

    Args:
        spec: which.
        dtype: of activations, see `load_language_model`.
        remat: what a backward pass through it keeps.
        bits: 8 or 4 hold its kernels quantised (`models.language.quantization`); 0 as they are.

    Raises:
        UserError: no such weights, or not a language model's, or another number of bits.
    """
    if bits not in (0, *GROUPS):
        raise UserError(f"language.bits is {bits}, expected 0, 8 or 4")
    from pyratok_jax.checkpoints.foreign.language_model import PREFIX, load_language_model, packaged

    spec = spec if spec.startswith(PREFIX) else str(local_folder(spec))
    model, tokenizer = load_language_model(spec, dtype=dtype, remat=remat)
    if bits:
        quantize_model(model, bits)
    if spec.startswith(PREFIX):
        sha256 = packaged(spec).sha256
    else:
        sha256 = read_config(spec, "language_model")["sha256"]
    return Language(model, tokenizer, sha256)
