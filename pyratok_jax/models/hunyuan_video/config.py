"""Sizes of the HunyuanVideo VAE."""

import dataclasses
from typing import ClassVar

from pyratok_jax.models.vae_parts import TimeHalvingVAEConfig
from pyratok_jax.nn.grids import Stride


@dataclasses.dataclass(frozen=True)
class HunyuanVideoConfig(TimeHalvingVAEConfig):
    """Sizes of one VAE; defaults are the published ones. The last `time_levels` halve time."""

    family: ClassVar[str] = "hunyuan_video"

    latents_std: tuple[float, ...] = (1 / 0.476986,) * 16

    @property
    def halves_time(self) -> tuple[bool, ...]:
        """Whether the downsampling after each encoder stage but the last halves time."""
        halvings = len(self.widths) - 1
        return tuple(i >= halvings - self.time_levels for i in range(halvings))

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
    return HunyuanVideoConfig.small(
        (width, 2 * width, 4 * width, 4 * width), **({"groups": 4} | changes)
    )
