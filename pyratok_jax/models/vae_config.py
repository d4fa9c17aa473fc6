"""Sizes of a video VAE: what every family's have in common."""

import abc
import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

from pyratok_jax.errors import check_fields
from pyratok_jax.io import Json
from pyratok_jax.nn.settings import PRESETS, Stride


class VideoVAEConfig(abc.ABC):
    """Sizes of a video VAE. Subclasses are frozen dataclasses.

    Frame 0 is separate in every family: clips have 1 + a multiple of `frame_step` frames, and a
    stage of time stride dt has 1 + (t - 1) / dt of them.

    Attributes:
        family: name in `vae_families`; stored beside the sizes.
        streams: whether clips can be encoded and decoded in chunks, exactly (`StreamCache`).
        z_dim: latent channels.
        latents_mean, latents_std: per-channel statistics by which latents are normalised.
    """

    family: ClassVar[str]
    streams: ClassVar[bool] = False
    z_dim: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    @property
    @abc.abstractmethod
    def temporal_factor(self) -> int:
        """Frames per latent frame after the first."""

    @property
    @abc.abstractmethod
    def spatial_factor(self) -> int:
        """Pixels per latent position along a side."""

    @property
    @abc.abstractmethod
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each encoder stage's output."""

    @property
    @abc.abstractmethod
    def stage_strides(self) -> tuple[Stride, ...]:
        """(time, space) stride in pixels of each encoder stage's output."""

    def to_dict(self) -> dict[str, Json]:
        """The fields as plain values for a JSON file, without the family."""
        fields: Any = self
        return dataclasses.asdict(fields)

    @classmethod
    def from_dict(cls, values: dict[str, Json]) -> "VideoVAEConfig":
        """The configuration that `to_dict` wrote; absent fields take their defaults.

        Raises:
            ValueError: a key that is not a field, or sizes that do not go together.
        """
        check_fields(values, cls, f"the {cls.family} VAE's configuration")
        # JSON knows no tuples.
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @property
    def frame_step(self) -> int:
        """Clips have 1 + a multiple of this many frames."""
        return self.temporal_factor

    @property
    def frames_rule(self) -> str:
        """Valid numbers of frames, for messages: "4k+1"."""
        return f"{self.frame_step}k+1" if self.frame_step > 1 else "at least 1"

    @property
    def default_grids(self) -> tuple[Stride, ...]:
        """Strides in pixels of a pyramid with one level per stage, of the last four at most.

        A level has the time stride of its stage; in space it is coarser than the latent by 4, 2, 2
        and 1, or by 2, 1, 1 and 1 where a latent position already covers 16 pixels a side.
        """
        coarser = (4, 2, 2, 1) if self.spatial_factor < 16 else (2, 1, 1, 1)
        strides = self.stage_strides[-4:]
        return tuple(
            (time, self.spatial_factor * ratio)
            for (time, _), ratio in zip(strides, coarser[-len(strides) :], strict=True)
        )

    def preset_grids(self, name: str) -> tuple[Stride, ...]:
        """The strides of `nn.settings.PRESETS` for this VAE.

        A level whose time stride is the latent's keeps to it, another one takes the stride of its
        encoder stage. In space a level is never finer than the latent.

        Raises:
            ValueError: there is no such preset, or the encoder has fewer stages than it has levels.
        """
        if name not in PRESETS:
            raise ValueError(f"grids {name!r} is not one of {', '.join(PRESETS)}")
        preset, factor = PRESETS[name], self.spatial_factor
        if len(self.stage_strides) < len(preset):
            raise ValueError(
                f"grids {name!r} has {len(preset)} levels, the VAE's encoder has "
                f"{len(self.stage_strides)} stages; name the strides"
            )
        times = [time for time, _ in self.stage_strides[-len(preset) :]]
        latent = max(time for time, _ in preset)
        return tuple(
            (self.temporal_factor if dt == latent else time, factor * -(-ds // factor))
            for (dt, ds), time in zip(preset, times, strict=True)
        )

    def window(self, least: int = 17) -> int:
        """The smallest valid number of frames that is at least `least`."""
        return 1 + self.frame_step * -(-(least - 1) // self.frame_step)

    def check_clip(self, t: int, h: int, w: int) -> None:
        """Refuse a clip of t frames of h x w pixels that the VAE cannot encode.

        Raises:
            ValueError: naming what frames and sides must be.
        """
        step, space = self.frame_step, self.spatial_factor
        if t < 1 or (t - 1) % step or h % space or w % space:
            raise ValueError(
                f"a clip of {t}x{h}x{w} does not suit the VAE: frames must be {self.frames_rule}, "
                f"sides multiples of {space}; pad it first"
            )


def check_statistics(config: VideoVAEConfig) -> None:
    """Refuse latent statistics without one entry per channel, or deviations that are not positive.

    Raises:
        ValueError: naming the fields.
    """
    if not len(config.latents_mean) == len(config.latents_std) == config.z_dim:
        raise ValueError(f"latents_mean and latents_std need {config.z_dim} entries")
    for value in config.latents_std:
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"latents_std has {value}, expected positive numbers")


def check_multiples(name: str, sizes: Iterable[int], of: int = 1) -> None:
    """Refuse sizes that are not positive multiples of `of`.

    Raises:
        ValueError: naming the field and the first wrong size.
    """
    for size in sizes:
        if isinstance(size, int) and (size < 1 or size % of):
            multiples = f"multiples of {of}" if of > 1 else "numbers"
            raise ValueError(f"{name} has {size}, expected positive {multiples}")
