"""Stable Video Diffusion: diffusers' files, and Stability's single file of the whole model."""

import re
from typing import Any

from pyratok_jax.io import Json
from pyratok_jax.models.svd import SVD, SVDConfig
from weights_conversion.vae.naming import Converter, Naming, Place, diffusers_sizes

_DECODER = "first_stage_model.decoder."
# The encoder that belongs to the quant_conv is the one that makes the diffusion model's condition.
_ENCODER = "conditioner.embedders.3.encoder."
_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
_TIME = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}  # fmt: skip
_TOP = {"conv_norm_out": "norm_out", "time_conv_out": "conv_out.time_mix_conv"}


def _stability(path: str) -> Place:
    if path == "quant_conv":
        return Place(_ENCODER + path)
    side, rest = path.split(".", 1)
    prefix = _DECODER if side == "decoder" else _ENCODER + "encoder."
    return Place(prefix + _inside(rest))


def _inside(rest: str) -> str:
    """The name inside the encoder or decoder."""
    rest = _TOP.get(rest, rest)
    attention = re.fullmatch(r"mid_block\.attentions\.0\.(.+)", rest)
    if attention:
        return f"mid.attn_1.{_ATTENTION[attention[1]]}"
    rest = re.sub(r"^mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", rest)
    rest = re.sub(r"^down_blocks\.(\d)\.resnets", r"down.\1.block", rest)
    rest = re.sub(r"^up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", rest)
    rest = re.sub(r"^down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", rest)
    rest = re.sub(
        r"^up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", rest
    )
    rest = rest.replace("spatial_res_block.", "").replace("time_mixer", "")
    time = re.fullmatch(r"(.+)temporal_res_block\.(.+)", rest)
    if time:
        return f"{time[1]}time_stack.{_TIME[time[2]]}"
    return rest.rstrip(".").replace("conv_shortcut", "nin_shortcut")


def _skip(key: str) -> str | None:
    if key.startswith("first_stage_model.encoder."):
        return "an encoder without quant_conv; the one of the condition is taken"
    if key.startswith(_ENCODER + "decoder.") or key.startswith(_ENCODER + "post_quant_conv."):
        return "decoder of the condition's autoencoder"
    other = not key.startswith(("first_stage_model.", "conditioner.embedders.3."))
    return "of the diffusion model" if other else None


def from_diffusers(values: dict[str, Json]) -> SVDConfig:
    """Sizes from a published config.json."""
    return SVDConfig(**diffusers_sizes(values, SVD))


def to_diffusers(config: SVDConfig) -> dict[str, Json]:
    """Arguments of diffusers' `AutoencoderKLTemporalDecoder`."""
    return {
        "block_out_channels": list(config.widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(config.widths),
        "layers_per_block": config.layers,
        "latent_channels": config.z_dim,
        "scaling_factor": 1 / config.latents_std[0],
    }


def _encode(model: Any, video: Any) -> Any:
    frames = video.transpose(1, 2).flatten(0, 1)
    moments = model.quant_conv(model.encoder(frames))
    return moments.unflatten(0, (len(video), -1)).transpose(1, 2)


def _decode(model: Any, z: Any) -> Any:
    frames = z.transpose(1, 2).flatten(0, 1)
    video = model.decode(frames, num_frames=z.shape[2]).sample
    return video.unflatten(0, (len(z), -1)).transpose(1, 2)


CONVERTER = Converter(
    family="svd",
    title="Stable Video Diffusion VAE",
    namings=(
        Naming("diffusers", ("decoder.time_conv_out.weight", "encoder.conv_in.weight"), Place),
        Naming("Stability", (_DECODER + "conv_out.time_mix_conv.weight",
                             _ENCODER + "quant_conv.weight"), _stability, _skip, prefixed=False),
    ),
    class_names=("AutoencoderKLTemporalDecoder",),
    published=SVD,
    from_diffusers=from_diffusers,
    to_diffusers=to_diffusers,
    encode=_encode,
    decode=_decode,
    is_linear=lambda path: ".attentions." in path,
)  # fmt: skip
