"""HunyuanVideo: diffusers' files; the original file has the same names for its VAE."""

import re
from typing import Any

from pyratok_jax.io import Json
from pyratok_jax.models.hunyuan_video import HUNYUAN_VIDEO, HunyuanVideoConfig
from weights_conversion.vae.naming import Converter, Naming, Place, diffusers_sizes

_CAUSAL = re.compile(r"\.(conv|conv_in|conv_out|conv1|conv2|conv_shortcut)$")


def _diffusers(path: str) -> Place:
    return Place(path + ".conv" if _CAUSAL.search(path) else path)


def from_diffusers(values: dict[str, Json]) -> HunyuanVideoConfig:
    """Sizes from a published config.json.

    Raises:
        ValueError: compression other than 4x8x8, or no attention.
    """
    layout = (
        values.get("temporal_compression_ratio", 4),
        values.get("spatial_compression_ratio", 8),
        values.get("mid_block_add_attention", True),
    )
    if layout != (4, 8, True):
        raise ValueError(f"compression and attention {layout}, expected (4, 8, True)")
    return HunyuanVideoConfig(
        **diffusers_sizes(values, HUNYUAN_VIDEO), groups=values.get("norm_num_groups", 32)
    )


def to_diffusers(config: HunyuanVideoConfig) -> dict[str, Json]:
    """Arguments of diffusers' `AutoencoderKLHunyuanVideo`."""
    return {
        "block_out_channels": list(config.widths),
        "layers_per_block": config.layers,
        "norm_num_groups": config.groups,
        "latent_channels": config.z_dim,
        "scaling_factor": 1 / config.latents_std[0],
    }


def _decode(model: Any, z: Any) -> Any:
    model.use_framewise_decoding = False  # Overlapping windows of time are another function.
    return model.decode(z).sample


CONVERTER = Converter(
    family="hunyuan_video",
    title="HunyuanVideo VAE",
    namings=(
        Naming(
            "diffusers",
            (
                "encoder.mid_block.attentions.0.group_norm.weight",
                "encoder.down_blocks.0.resnets.0.conv1.conv.weight",
            ),
            _diffusers,
        ),
    ),
    class_names=("AutoencoderKLHunyuanVideo",),
    published=HUNYUAN_VIDEO,
    from_diffusers=from_diffusers,
    to_diffusers=to_diffusers,
    encode=lambda model, video: model.quant_conv(model.encoder(video)),
    decode=_decode,
    is_linear=lambda path: ".attentions." in path,
)
