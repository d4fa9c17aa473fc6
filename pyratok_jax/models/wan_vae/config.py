"""Sizes of the Wan video VAEs: one description for both published layouts and small instances."""

import dataclasses
import math
from typing import ClassVar

from pyratok_jax.io import Json
from pyratok_jax.models.vae_config import VideoVAEConfig

# Per-channel statistics of the latents, as published with the checkpoints.
_WAN21_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
_WAN21_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
_WAN22_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813,
    0.0891, 0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108,
    -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313,
    -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944,
    0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
_WAN22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip

_MAX_SIZE, _MAX_STAGES = 1 << 16, 16


@dataclasses.dataclass(frozen=True)
class WanVAEConfig(VideoVAEConfig):
    """Sizes of one VAE. Names follow the published configuration; defaults are Wan 2.1.

    Attributes:
        base_dim: encoder width of stage 0.
        decoder_base_dim: decoder width of its last stage; None means `base_dim`.
        z_dim: latent channels.
        dim_mult: width of each stage as a multiple of the base.
        num_res_blocks: residual blocks per encoder stage (the decoder has one more).
        temporal_downsample: whether the stage's downsampling also halves time.
        spatial_downsample: whether it halves the sides; None means at every stage (as published).
        is_residual: shortcuts around whole stages (Wan 2.2).
        in_channels, out_channels: channels after patchifying.
        patch_size: side of the pixel patches folded into channels; None means 1.
        linear_path: a linear map of blocks of pixels beside the encoder and one of latents beside
            the decoder are added to what these give (see `linear.LinearPath`).
        latents_mean, latents_std: statistics by which latents are normalised.
    """

    family: ClassVar[str] = "wan"
    streams: ClassVar[bool] = True

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    spatial_downsample: tuple[bool, ...] | None = None
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None
    linear_path: bool = False
    latents_mean: tuple[float, ...] = _WAN21_MEAN
    latents_std: tuple[float, ...] = _WAN21_STD

    def __post_init__(self) -> None:
        for name in ("dim_mult", "temporal_downsample", "latents_mean", "latents_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError("temporal_downsample needs one entry less than dim_mult")
        if self.spatial_downsample is not None:
            object.__setattr__(self, "spatial_downsample", tuple(self.spatial_downsample))
            if len(self.spatial_downsample) != len(self.temporal_downsample):
                raise ValueError("spatial_downsample needs one entry less than dim_mult")
        if not len(self.latents_mean) == len(self.latents_std) == self.z_dim:
            raise ValueError(f"latents_mean and latents_std need {self.z_dim} entries")
        if not all(math.isfinite(x) for x in self.latents_mean):
            raise ValueError("latents_mean has values that are not finite")
        if not all(math.isfinite(x) and x > 0 for x in self.latents_std):
            raise ValueError("latents_std has values that are not finite and above 0")
        sizes = (self.base_dim, self.decoder_dims[-1], self.z_dim, self.patch, *self.dim_mult)
        if not all(1 <= size <= _MAX_SIZE for size in (*sizes, self.num_res_blocks)):
            raise ValueError(f"sizes must be from 1 to {_MAX_SIZE}")
        if len(self.dim_mult) > _MAX_STAGES:
            raise ValueError(f"dim_mult has {len(self.dim_mult)} stages, at most {_MAX_STAGES}")
        pixels = 3 * self.patch**2
        if self.in_channels != pixels or self.out_channels != pixels:
            raise ValueError(f"patch_size {self.patch_size} needs {pixels} in and out channels")

    @property
    def patch(self) -> int:
        """Side of a pixel patch, at least 1."""
        return self.patch_size or 1

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame after the first."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along a side."""
        return self.patch * 2 ** sum(self.halves_space)

    @property
    def halves_space(self) -> tuple[bool, ...]:
        """Whether each stage's downsampling halves the sides."""
        every = (True,) * len(self.temporal_downsample)
        return every if self.spatial_downsample is None else self.spatial_downsample

    @property
    def encoder_dims(self) -> tuple[int, ...]:
        """Width before stage 0 and after each stage."""
        return tuple(self.base_dim * m for m in (1, *self.dim_mult))

    @property
    def decoder_dims(self) -> tuple[int, ...]:
        """Width before the first decoder stage and after each stage."""
        base = self.decoder_base_dim or self.base_dim
        return tuple(base * m for m in (self.dim_mult[-1], *self.dim_mult[::-1]))

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each encoder stage's output."""
        return self.encoder_dims[1:]

    @property
    def stage_strides(self) -> tuple[tuple[int, int], ...]:
        """(time, space) stride to the pixels of each encoder stage's output."""
        strides, time, space = [], 1, self.patch
        for halves in zip(self.temporal_downsample, self.halves_space, strict=True):
            time, space = (
                n * (2 if half else 1) for n, half in zip((time, space), halves, strict=True)
            )
            strides.append((time, space))
        return (*strides, (time, space))

    def to_dict(self) -> dict[str, Json]:
        """Plain values for a JSON file; what no published layout has is left out where unused."""
        values = dataclasses.asdict(self)
        for name in ("spatial_downsample", "linear_path"):
            if not values[name]:
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Json]) -> "WanVAEConfig":
        """A configuration from our JSON or a published one.

        Published files spell `temperal_downsample` and hold keys that only concern their own
        library; absent keys take the defaults.
        """
        values = dict(values)
        if "temperal_downsample" in values:
            values["temporal_downsample"] = values.pop("temperal_downsample")
        names = {field.name for field in dataclasses.fields(cls)}
        # JSON knows no tuples.
        given: dict[str, Json] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in names
        }
        return cls(**given)


WAN21 = WanVAEConfig()
WAN22 = WanVAEConfig(
    base_dim=160,
    decoder_base_dim=256,
    z_dim=48,
    is_residual=True,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    latents_mean=_WAN22_MEAN,
    latents_std=_WAN22_STD,
)


# The demo's backbone (`builtin:demo-backbone`), whose weights come with their own statistics.
DEMO = WanVAEConfig(
    base_dim=20,
    decoder_base_dim=24,
    num_res_blocks=1,
    spatial_downsample=(True, False, False),
    is_residual=True,
    in_channels=48,
    out_channels=48,
    patch_size=4,
    linear_path=True,
    z_dim=48,  # as Wan 2.2 has; of 16 components a linear code keeps 4.5 dB less
    latents_mean=(0.0,) * 48,
    latents_std=(1.0,) * 48,
)


def tiny(base_dim: int = 16, z_dim: int = 16, is_residual: bool = True) -> WanVAEConfig:
    """A small 4x8x8 instance of the same network, with unit latent statistics."""
    return WanVAEConfig(
        base_dim=base_dim,
        z_dim=z_dim,
        is_residual=is_residual,
        latents_mean=(0.0,) * z_dim,
        latents_std=(1.0,) * z_dim,
    )
