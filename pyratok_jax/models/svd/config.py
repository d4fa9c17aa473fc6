"""Sizes of Stable Video Diffusion's VAE."""

import dataclasses
from typing import ClassVar

from pyratok_jax.models.vae_parts import HalvingVAEConfig
from pyratok_jax.nn.grids import Stride


@dataclasses.dataclass(frozen=True)
class SVDConfig(HalvingVAEConfig):
    """Sizes of one VAE; defaults are the published ones. Time is not reduced.

    Widths must be multiples of 32, the groups of its norms.
    """

    family: ClassVar[str] = "svd"

    z_dim: int = 4
    latents_mean: tuple[float, ...] = (0.0,) * 4
    latents_std: tuple[float, ...] = (1 / 0.18215,) * 4

    @property
    def temporal_factor(self) -> int:
        """Every frame has its own latent."""
        return 1

    @property
    def stage_strides(self) -> tuple[Stride, ...]:
        """(time, space) stride in pixels of each encoder stage's output."""
        last = len(self.widths) - 1
        return tuple((1, 2 ** min(i + 1, last)) for i in range(last + 1))


SVD = SVDConfig()


def tiny(width: int = 32, **changes) -> SVDConfig:
    """A small 1x8x8 instance with unit statistics."""
    return SVDConfig.small((width, width, width, 2 * width), **({"layers": 2} | changes))
