"""Sizes of the HunyuanVideo VAE."""

import dataclasses
from typing import ClassVar

from pyratok_jax.models.video_vae import VideoVAEConfig, check_statistics
from pyratok_jax.nn.grids import Stride


@dataclasses.dataclass(frozen=True)
class HunyuanVideoConfig(VideoVAEConfig):
    """Sizes of one VAE; defaults are the published ones.

    Attributes:
        widths: channels of each encoder stage; the decoder has them in reverse.
        layers: residual blocks per encoder stage (the decoder has one more).
        groups: of every group norm.
        z_dim: latent channels.
        time_levels: how many halvings, the last ones, also halve time.
        latents_mean, latents_std: statistics by which latents are normalised.
    """

    family: ClassVar[str] = "hunyuan_video"

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    groups: int = 32
    z_dim: int = 16
    time_levels: int = 2
    latents_mean: tuple[float, ...] = (0.0,) * 16
    latents_std: tuple[float, ...] = (1 / 0.476986,) * 16

    def __post_init__(self) -> None:
        check_statistics(self)
        if not 0 <= self.time_levels < len(self.widths):
            raise ValueError(f"time_levels {self.time_levels} needs more stages than that")

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame after the first."""
        return 2**self.time_levels

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.widths) - 1)

    @property
    def halves_time(self) -> tuple[bool, ...]:
        """Whether the downsampling after each encoder stage but the last halves time."""
        halvings = len(self.widths) - 1
        return tuple(i >= halvings - self.time_levels for i in range(halvings))

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each encoder stage's output."""
        return self.widths

    @property
    def stage_strides(self) -> tuple[Stride, ...]:
        """(time, space) stride in pixels of each encoder stage's output."""
        strides, time = [], 1
        for index, halves in enumerate(self.halves_time):
            time *= 2 if halves else 1
            strides.append((time, 2 ** (index + 1)))
        return (*strides, strides[-1])


HUNYUAN_VIDEO = HunyuanVideoConfig()


def tiny(width: int = 8, **changes) -> HunyuanVideoConfig:
    """A small 4x8x8 instance with one residual block per stage and unit statistics."""
    z = changes.get("z_dim", 4)
    values = {
        "widths": (width, 2 * width, 4 * width, 4 * width), "layers": 1, "groups": 4, "z_dim": z,
        "latents_mean": (0.0,) * z, "latents_std": (1.0,) * z,
    }  # fmt: skip
    return HunyuanVideoConfig(**(values | changes))
