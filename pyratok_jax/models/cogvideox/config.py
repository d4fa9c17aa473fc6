"""Sizes of the CogVideoX VAE."""

import dataclasses
from typing import ClassVar

from pyratok_jax.models.vae_parts import TimeHalvingVAEConfig
from pyratok_jax.nn.grids import Stride


@dataclasses.dataclass(frozen=True)
class CogVideoXConfig(TimeHalvingVAEConfig):
    """Sizes of one VAE; defaults are those of CogVideoX-2b. The first `time_levels` halve time.

    Attributes:
        encode_frames: frames over which the encoder's norms take their statistics: 0, the whole
            clip, as the diffusion models were trained; or 8, parts of 8 frames (the first one
            longer by what is left over) with constant memory, as diffusers encodes.
    """

    family: ClassVar[str] = "cogvideox"

    widths: tuple[int, ...] = (128, 256, 256, 512)
    layers: int = 3
    latents_std: tuple[float, ...] = (1 / 1.15258426,) * 16
    encode_frames: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encode_frames < 0 or self.encode_frames % self.temporal_factor:
            raise ValueError(
                f"encode_frames {self.encode_frames} is not a multiple of {self.temporal_factor}"
            )

    @property
    def stage_strides(self) -> tuple[Stride, ...]:
        """(time, space) stride of each stage's output, which is taken before time is halved."""
        last = len(self.widths) - 1
        return tuple(
            (2 ** min(i, self.time_levels), 2 ** min(i + 1, last)) for i in range(last + 1)
        )


COGVIDEOX_2B = CogVideoXConfig()
COGVIDEOX_5B = CogVideoXConfig(latents_std=(1 / 0.7,) * 16)  # and 1.5


def tiny(width: int = 8, **changes) -> CogVideoXConfig:
    """A small 4x8x8 instance with one residual block per stage and unit statistics."""
    return CogVideoXConfig.small(
        (width, 2 * width, 2 * width, 4 * width), **({"groups": 4} | changes)
    )
