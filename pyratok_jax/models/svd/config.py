"""Sizes of Stable Video Diffusion's VAE."""

import dataclasses
from typing import ClassVar

from pyratok_jax.models.video_vae import VideoVAEConfig, check_statistics
from pyratok_jax.nn.grids import Stride


@dataclasses.dataclass(frozen=True)
class SVDConfig(VideoVAEConfig):
    """Sizes of one VAE; defaults are the published ones. Time is not reduced.

    Attributes:
        widths: channels of each encoder stage, multiples of 32; the decoder has them in reverse.
        layers: residual blocks per encoder stage (the decoder has one more).
        z_dim: latent channels.
        latents_mean, latents_std: statistics by which latents are normalised.
    """

    family: ClassVar[str] = "svd"

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    z_dim: int = 4
    latents_mean: tuple[float, ...] = (0.0,) * 4
    latents_std: tuple[float, ...] = (1 / 0.18215,) * 4

    def __post_init__(self) -> None:
        check_statistics(self)

    @property
    def temporal_factor(self) -> int:
        """Every frame has its own latent."""
        return 1

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.widths) - 1)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each encoder stage's output."""
        return self.widths

    @property
    def stage_strides(self) -> tuple[Stride, ...]:
        """(time, space) stride in pixels of each encoder stage's output."""
        last = len(self.widths) - 1
        return tuple((1, 2 ** min(i + 1, last)) for i in range(last + 1))


SVD = SVDConfig()


def tiny(width: int = 32, **changes) -> SVDConfig:
    """A small 1x8x8 instance with unit statistics."""
    z = changes.get("z_dim", 4)
    values = {
        "widths": (width, width, width, 2 * width), "layers": 2, "z_dim": z,
        "latents_mean": (0.0,) * z, "latents_std": (1.0,) * z,
    }  # fmt: skip
    return SVDConfig(**(values | changes))
