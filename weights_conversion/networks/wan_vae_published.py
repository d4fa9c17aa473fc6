"""The Wan VAE in published files: names of tensors, diffusers' folder, comparison with diffusers.

Two namings exist (the original one, also used by safetensors repacks, and the one of diffusers),
each for two layouts: plain (Wan 2.1) and residual (Wan 2.2).
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pyratok_jax.checkpoints.conversion import Entry, conv2d, conv3d, flat
from pyratok_jax.checkpoints.foreign.sources import TensorSource
from pyratok_jax.checkpoints.partition import module_shapes
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import new_folder
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from weights_conversion.vae.converting import compare

NAMINGS = ("original", "diffusers")
# First match wins: more deeply nested names come first.
_LAYOUTS = (
    ("encoder.downsamples.0.downsamples.", "original", True),
    ("encoder.downsamples.", "original", False),
    ("encoder.down_blocks.0.resnets.", "diffusers", True),
    ("encoder.down_blocks.", "diffusers", False),
)
_ORIGINAL_TOP = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
_ORIGINAL_ENDS = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
_ORIGINAL_MID = {"resnets.0": "middle.0", "attentions.0": "middle.1", "resnets.1": "middle.2"}
_ORIGINAL_BLOCK = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_STAGE = re.compile(r"(encoder|decoder)\.stages\.(\d+)\.(.+)")


class Layout(NamedTuple):
    """What a file holds: its naming, the residual layout or not, and a prefix on every name."""

    naming: str
    is_residual: bool
    prefix: str = ""


def detect(source: TensorSource) -> Layout:
    """The layout of a file, from its keys alone.

    Raises:
        UserError: when the file holds no Wan VAE.
    """
    for mark, naming, residual in _LAYOUTS:
        for key in source.keys():  # noqa: SIM118 - no mapping
            start = key.find(mark)
            if start == 0 or (start > 0 and key[start - 1] == "."):
                return Layout(naming, residual, key[:start])
    found = source.keys()
    example = f"its first key is {found[0]}" if found else "it holds no tensors"
    raise UserError(
        f"{source.path}: not a Wan VAE ({example}); expected encoder.downsamples.* or "
        "encoder.down_blocks.*"
    )


def published_name(target: str, naming: str, config: WanVAEConfig) -> str:
    """The published name of one of our arrays, e.g. `encoder.stages.0.resnets.1.conv1.kernel`."""
    path, leaf = target.rsplit(".", 1)
    leaf = "weight" if leaf == "kernel" else leaf
    stage = _STAGE.fullmatch(path)
    if stage:
        name = _stage_name(stage[1], int(stage[2]), stage[3], naming, config)
    else:
        name = path if naming == "diffusers" else _original_name(path)
    return f"{name}.{leaf}"


def _stage_name(side: str, index: int, rest: str, naming: str, config: WanVAEConfig) -> str:
    """Names inside the down and up stages."""
    encoding = side == "encoder"
    blocks = config.num_res_blocks + (0 if encoding else 1)
    is_block = rest.startswith("resnets.")
    if is_block:
        _, number, part = rest.split(".", 2)
        position = int(number)
    else:
        position, part = blocks, rest.split(".", 1)[1].replace("spatial", "resample.1")
    if naming == "original":
        group = "downsamples" if encoding else "upsamples"
        part = _ORIGINAL_BLOCK.get(part, part)
        if config.is_residual:
            return f"{side}.{group}.{index}.{group}.{position}.{part}"
        return f"{side}.{group}.{index * (blocks + 1) + position}.{part}"
    group = "down_blocks" if encoding else "up_blocks"
    if encoding and not config.is_residual:
        return f"{side}.{group}.{index * (blocks + 1) + position}.{part}"
    if is_block:
        return f"{side}.{group}.{index}.resnets.{position}.{part}"
    sampler = "downsampler" if encoding else "upsampler"
    return f"{side}.{group}.{index}.{sampler if config.is_residual else 'upsamplers.0'}.{part}"


def _original_name(path: str) -> str:
    """Names outside the stages, in the original naming."""
    if path in _ORIGINAL_TOP:
        return _ORIGINAL_TOP[path]
    side, rest = path.split(".", 1)
    if rest in _ORIGINAL_ENDS:
        return f"{side}.{_ORIGINAL_ENDS[rest]}"
    block, part = rest.removeprefix("mid_block.").rsplit(".", 1)
    return f"{side}.{_ORIGINAL_MID[block]}.{_ORIGINAL_BLOCK.get(part, part)}"


def entries(shapes: Mapping[str, tuple[int, ...]], config: WanVAEConfig, layout: Layout) -> list:
    """Where each of our arrays comes from in a file of `layout`."""
    found = []
    for target, shape in shapes.items():
        transform = {1: flat, 4: conv2d, 5: conv3d}[len(shape)]
        name = published_name(target, layout.naming, config)
        found.append(Entry(layout.prefix + name, target, transform))
    return found


def to_published(
    arrays: Mapping[str, Any], naming: str, config: WanVAEConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """Our arrays under their published names, in torch's layout, one at a time."""
    for target, value in arrays.items():
        array = np.asarray(value)
        if array.ndim == 5:
            array = array.transpose(4, 3, 0, 1, 2)
        elif array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif target.endswith(".gamma"):
            ones = 2 if ".attentions." in target else 3
            array = array.reshape(-1, *(1,) * ones)
        yield published_name(target, naming, config), np.ascontiguousarray(array)


WEIGHTS = "diffusion_pytorch_model.safetensors"


def diffusers_config(config: WanVAEConfig) -> dict[str, Json]:
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
