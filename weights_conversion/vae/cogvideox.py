"""CogVideoX: diffusers' files and the original ones (SAT); MotionAura's have diffusers' names."""

import re

from pyratok_jax.errors import quoted
from pyratok_jax.io import Json
from pyratok_jax.models.cogvideox import COGVIDEOX_2B, CogVideoXConfig
from weights_conversion.vae.naming import Converter, Naming, Place, diffusers_sizes

_CAUSAL = re.compile(r"(conv_in|conv_out|conv1|conv2|conv_y|conv_b)$")


def _diffusers(path: str) -> Place:
    return Place(path + ".conv" if _CAUSAL.search(path) else path)


def _sat(path: str) -> Place:
    name = _diffusers(path).path
    stage = re.match(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.", name)
    if stage:
        side, way, index = stage.groups()
        number = int(index) if way == "down" else 3 - int(index)
        rest = name[stage.end() :].replace("resnets.", "block.")
        rest = rest.replace(f"{way}samplers.0.", f"{way}sample.")
        name = f"{side}.{way}.{number}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
    return Place(re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name))


def _skip(key: str) -> str | None:
    return "loss of the VAE's training" if key.startswith("loss.") else None


def from_diffusers(values: dict[str, Json]) -> CogVideoXConfig:
    """Sizes from a published config.json."""
    ratio = values.get("temporal_compression_ratio", 4)
    levels = int(ratio).bit_length() - 1
    if ratio != 2**levels:
        raise ValueError(f"temporal_compression_ratio is {quoted(ratio)}, expected a power of two")
    return CogVideoXConfig(
        **diffusers_sizes(values, COGVIDEOX_2B),
        groups=values.get("norm_num_groups", 32),
        time_levels=levels,
    )


def to_diffusers(config: CogVideoXConfig) -> dict[str, Json]:
    """Arguments of diffusers' `AutoencoderKLCogVideoX`."""
    stages = len(config.widths)
    return {
        "block_out_channels": list(config.widths),
        "down_block_types": ["CogVideoXDownBlock3D"] * stages,
        "up_block_types": ["CogVideoXUpBlock3D"] * stages,
        "layers_per_block": config.layers,
        "norm_num_groups": config.groups,
        "latent_channels": config.z_dim,
        "temporal_compression_ratio": config.temporal_factor,
        "scaling_factor": 1 / config.latents_std[0],
    }


CONVERTER = Converter(
    family="cogvideox",
    title="CogVideoX VAE",
    namings=(
        Naming(
            "diffusers",
            (
                "encoder.down_blocks.0.resnets.0.conv1.conv.weight",
                "decoder.norm_out.conv_y.conv.weight",
            ),
            _diffusers,
        ),
        Naming("SAT", ("encoder.down.0.block.0.conv1.conv.weight",
                       "decoder.norm_out.conv_y.conv.weight"), _sat, _skip),
    ),
    class_names=("AutoencoderKLCogVideoX", "AutoencoderKLMotionAura"),
    published=COGVIDEOX_2B,
    from_diffusers=from_diffusers,
    to_diffusers=to_diffusers,
    # The encoder itself: diffusers' `encode` would take its statistics over parts of 8 frames.
    encode=lambda model, video: model.encoder(video)[0],
    decode=lambda model, z: model.decode(z).sample,
)  # fmt: skip
