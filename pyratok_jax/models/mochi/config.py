"""Sizes of the Mochi VAE."""

import dataclasses
import math
from typing import ClassVar

from pyratok_jax.models.video_vae import VideoVAEConfig, check_statistics
from pyratok_jax.nn.grids import Stride

# Per-channel statistics of the latents, as published with the checkpoint.
_MEAN = (
    -0.06730895953510081, -0.038011381506090416, -0.07477820912866141, -0.05565264470995561,
    0.012767231469026969, -0.04703542746246419, 0.043896967884726704, -0.09346305707025976,
    -0.09918314763016893, -0.008729793427399178, -0.011931556316503654, -0.0321993391887285,
)  # fmt: skip
_STD = (
    0.9263795028493863, 0.9248894543193766, 0.9393059390890617, 0.959253732819592,
    0.8244560132752793, 0.917259975397747, 0.9294154431013696, 1.3720942357788521,
    0.881393668867029, 0.9168315692124348, 0.9185249279345552, 0.9274757570805041,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MochiConfig(VideoVAEConfig):
    """Sizes of one VAE; defaults are the published ones.

    Widths must be multiples of 32: of the groups of its norms, and of a head of its attention.

    Attributes:
        encoder_widths: channels before the first downsampling and after each.
        decoder_widths: channels after the last upsampling and before each, in reverse.
        layers: residual blocks at each resolution, the latent's last, counted twice there.
        time_strides: frames that each downsampling joins; sides are halved by each.
        z_dim: latent channels.
        keeps_first_frames: the decoder keeps all frames made of latent 0 up to its end, as
            diffusers does, instead of dropping them after each upsampling, as the original does.
            The same frames remain, with other values.
        latents_mean, latents_std: statistics by which latents are normalised.
    """

    family: ClassVar[str] = "mochi"

    encoder_widths: tuple[int, ...] = (64, 128, 256, 384)
    decoder_widths: tuple[int, ...] = (128, 256, 512, 768)
    layers: tuple[int, ...] = (3, 3, 4, 6, 3)
    time_strides: tuple[int, ...] = (1, 2, 3)
    z_dim: int = 12
    keeps_first_frames: bool = False
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD

    def __post_init__(self) -> None:
        check_statistics(self)
        stages = len(self.time_strides)
        if not len(self.encoder_widths) == len(self.decoder_widths) == stages + 1:
            raise ValueError(f"{stages} time_strides need {stages + 1} widths on each side")
        if len(self.layers) != stages + 2:
            raise ValueError(f"{stages} time_strides need {stages + 2} numbers of layers")

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame after the first."""
        return math.prod(self.time_strides)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** len(self.time_strides)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels after each downsampling's blocks, and of the last blocks of all."""
        return (*self.encoder_widths[1:], self.encoder_widths[-1])

    @property
    def stage_strides(self) -> tuple[Stride, ...]:
        """(time, space) stride in pixels of each of these features."""
        strides = [
            (math.prod(self.time_strides[: i + 1]), 2 ** (i + 1))
            for i in range(len(self.time_strides))
        ]
        return (*strides, strides[-1])


MOCHI = MochiConfig()


def tiny(width: int = 32, **changes) -> MochiConfig:
    """A small 6x8x8 instance with one residual block per stage and unit statistics."""
    z = changes.get("z_dim", 4)
    values = {
        "encoder_widths": (width, width, width, 2 * width), "z_dim": z,
        "decoder_widths": (width, width, width, 2 * width), "layers": (1, 1, 1, 1, 1),
        "latents_mean": (0.0,) * z, "latents_std": (1.0,) * z,
    }  # fmt: skip
    return MochiConfig(**(values | changes))
