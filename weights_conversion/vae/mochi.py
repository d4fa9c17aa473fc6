"""Mochi: diffusers' files, and genmo's encoder.safetensors and decoder.safetensors."""

import dataclasses
import re

from pyratok_jax.errors import quoted
from pyratok_jax.io import Json
from pyratok_jax.models.mochi import MOCHI, MochiConfig
from weights_conversion.vae.naming import Converter, Naming, Place

_LINEAR = re.compile(r"(proj|proj_in|proj_out|to_q|to_k|to_v|to_out\.0)$")
_BLOCK = {
    "norm1": "stack.0", "conv1": "stack.2", "norm2": "stack.3", "conv2": "stack.5",
}  # fmt: skip
_QKV = {"to_q": 0, "to_k": 1, "to_v": 2}


def _diffusers(path: str) -> Place:
    if re.search(r"(down_blocks\.\d+\.conv_in|conv1|conv2)$", path):
        return Place(path + ".conv")
    if re.search(r"(norm1|norm2|norm_out|norms\.\d+)$", path):
        return Place(path + ".norm_layer")
    return Place(path)


def _genmo(path: str) -> Place:
    side, rest = path.split(".", 1)
    tops = {
        "encoder": {"proj_in": "layers.0", "norm_out": "output_norm", "proj_out": "output_proj"},
        "decoder": {"conv_in": "blocks.0.0", "proj_out": "output_proj"},
    }
    if rest in tops[side]:
        return Place(f"{side}.{tops[side][rest]}")
    group, number, inside = _group(rest)
    if inside in ("conv_in", "proj"):
        name = "layers.0" if inside == "conv_in" else "proj"
        return Place(f"{side}.{'layers' if side == 'encoder' else 'blocks'}.{number}.{name}")
    kind, index, part = inside.split(".", 2) if inside.count(".") > 1 else (*inside.split("."), "")
    # What a block is called from its group and its number in it.
    block = {
        ("encoder", "block_in"): f"layers.{1 + int(index)}",
        ("encoder", "down_blocks"): f"layers.{number}.layers.{1 + int(index)}",
        ("encoder", "block_out"): f"layers.{7 + int(index)}",
        ("decoder", "block_in"): f"blocks.0.{1 + int(index)}",
        ("decoder", "up_blocks"): f"blocks.{number}.blocks.{index}",
        ("decoder", "block_out"): f"blocks.4.{index}",
    }[side, group]
    if kind == "resnets":
        return Place(f"{side}.{block}.{_BLOCK[part]}")
    if kind == "norms":
        return Place(f"{side}.{block}.attn_block.norm")
    if part in _QKV:
        return Place(f"{side}.{block}.attn_block.attn.qkv", _QKV[part])
    return Place(f"{side}.{block}.attn_block.attn.out")


def _group(rest: str) -> tuple[str, int, str]:
    """The group of blocks, its published number, and the path inside it."""
    parts = rest.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        first = 4 if parts[0] == "down_blocks" else 1
        return parts[0], first + int(parts[1]), ".".join(parts[2:])
    return parts[0], 0, ".".join(parts[1:])


def from_diffusers(values: dict[str, Json]) -> MochiConfig:
    """Sizes from a published config.json."""
    names = {
        "encoder_block_out_channels": "encoder_widths",
        "decoder_block_out_channels": "decoder_widths",
        "layers_per_block": "layers",
        "temporal_expansions": "time_strides",
        "latents_mean": "latents_mean",
        "latents_std": "latents_std",
    }
    given: dict[str, Json] = {
        ours: tuple(values[theirs]) for theirs, ours in names.items() if values.get(theirs)
    }
    config = MochiConfig(**given, z_dim=values.get("latent_channels", 12))
    expected = [2] * len(config.time_strides)
    if (spatial := values.get("spatial_expansions", expected)) != expected:
        raise ValueError(f"spatial_expansions is {quoted(spatial)}, expected {expected}")
    return config


def to_diffusers(config: MochiConfig) -> dict[str, Json]:
    """Arguments of diffusers' `AutoencoderKLMochi`."""
    return {
        "encoder_block_out_channels": list(config.encoder_widths),
        "decoder_block_out_channels": list(config.decoder_widths),
        "layers_per_block": list(config.layers),
        "temporal_expansions": list(config.time_strides),
        "spatial_expansions": [2] * len(config.time_strides),
        "latent_channels": config.z_dim,
        "latents_mean": list(config.latents_mean),
        "latents_std": list(config.latents_std),
    }


CONVERTER = Converter(
    family="mochi",
    title="Mochi VAE",
    namings=(
        Naming("diffusers", ("encoder.block_in.resnets.0.conv1.conv.weight",
                             "decoder.up_blocks.0.proj.weight"), _diffusers),
        Naming("genmo", ("encoder.layers.1.stack.2.weight", "decoder.blocks.0.1.stack.2.weight"),
               _genmo),
    ),
    class_names=("AutoencoderKLMochi",),
    published=MOCHI,
    from_diffusers=from_diffusers,
    to_diffusers=to_diffusers,
    encode=lambda model, video: model.encoder(video)[0],
    decode=lambda model, z: model.decode(z).sample,
    is_linear=lambda path: _LINEAR.search(path) is not None,
    comparable=lambda config: dataclasses.replace(config, keeps_first_frames=True),
)  # fmt: skip
