"""What families of video VAEs share: sizes, stages of residual blocks, encoding whole clips."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar, Unpack

from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.io import Json
from pyratok_jax.models.vae_config import VideoVAEConfig, check_multiples, check_statistics
from pyratok_jax.models.video_vae import Encoded, VideoVAE
from pyratok_jax.nn.causal_conv import Conv2d, LayerSettings
from pyratok_jax.nn.frame_attention import attend
from pyratok_jax.nn.group_norm import GroupNorm
from pyratok_jax.nn.halo import cut, join
from pyratok_jax.nn.remat import rematerialised
from pyratok_jax.nn.settings import POLICIES
from pyratok_jax.nn.stream_cache import StreamCache

C = TypeVar("C", bound="HalvingVAEConfig")
_STATISTICS = ("latents_mean", "latents_std")
Widths = list[tuple[int, int]]  # channels (in, out) of consecutive residual blocks


@dataclasses.dataclass(frozen=True)
class HalvingVAEConfig(VideoVAEConfig):
    """Sizes of a VAE in which all encoder stages but the last halve the sides.

    Attributes:
        widths: channels of each encoder stage; the decoder has them in reverse.
        layers: residual blocks per encoder stage (the decoder has one more).
        z_dim: latent channels.
        latents_mean, latents_std: statistics by which latents are normalised.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    z_dim: int = 16
    latents_mean: tuple[float, ...] = (0.0,) * 16
    latents_std: tuple[float, ...] = (1.0,) * 16

    def __post_init__(self) -> None:
        check_statistics(self)
        check_multiples("layers", (self.layers,))
        check_multiples("widths", self.widths)
        if not self.widths:
            raise ValueError("widths is empty")

    @classmethod
    def small(cls: type[C], widths: tuple[int, ...], **changes: Json) -> C:
        """Sizes for quick runs: one residual block per stage, four channels, unit statistics."""
        z = changes.get("z_dim", 4)
        values = {"layers": 1, "z_dim": z, "latents_mean": (0.0,) * z, "latents_std": (1.0,) * z}
        return cls(widths, **(values | changes))

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.widths) - 1)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each encoder stage's output."""
        return self.widths

    def encoder_blocks(self, stage: int) -> Widths:
        """Channels of an encoder stage's residual blocks."""
        before = self.widths[max(stage - 1, 0)]
        return _consecutive(before, self.widths[stage], self.layers)

    def decoder_blocks(self, stage: int) -> Widths:
        """Channels of a decoder stage's residual blocks."""
        widths = self.widths[::-1]
        return _consecutive(widths[max(stage - 1, 0)], widths[stage], self.layers + 1)


@dataclasses.dataclass(frozen=True)
class TimeHalvingVAEConfig(HalvingVAEConfig):
    """Sizes of a VAE of which some stages also halve the number of frames.

    Attributes:
        groups: of every group norm.
        time_levels: how many stages halve time.
    """

    groups: int = 32
    time_levels: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiples("groups", (self.groups,))
        check_multiples("widths", self.widths, self.groups)
        if not 0 <= self.time_levels < len(self.widths):
            raise ValueError(f"time_levels {self.time_levels} needs more stages than that")

    def to_dict(self) -> dict[str, Json]:
        """As `VideoVAEConfig.to_dict`.

        The order stays that of checkpoints which exist, whose hash covers it: the statistics last.
        """
        values = super().to_dict()
        first = ("widths", "layers", "groups", "z_dim", "time_levels")
        own = [key for key in values if key not in first + _STATISTICS]
        return {key: values[key] for key in (*first, *own, *_STATISTICS)}

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame after the first."""
        return 2**self.time_levels


class ResidualStage(nnx.Module):
    """Base of encoder and decoder stages: residual blocks at one resolution."""

    def __init__(self, blocks: Sequence[nnx.Module], remat: str):
        self.resnets = nnx.List(blocks)
        self.remat = remat

    def residual(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w d"]:
        """What the blocks make of `x`; recomputed in the backward pass as `remat` says."""
        run = rematerialised(self.remat, inner=True)
        for block in self.resnets:
            x = run(block, x, cache)
        return x


class AttentionBlock(nnx.Module):
    """One head over the positions of each frame, or of a clip's frames so far, plus the input.

    Attributes:
        over_clip: whether a frame also sees all earlier frames.
    """

    def __init__(self, norm: GroupNorm, *, over_clip: bool, **settings: Unpack[LayerSettings]):
        features = norm.scale.shape[0]
        self.group_norm = norm
        self.to_q, self.to_k, self.to_v = (
            Conv2d(features, features, (1, 1), **settings) for _ in range(3)
        )
        self.to_out = nnx.List([Conv2d(features, features, (1, 1), **settings)])
        self.over_clip = over_clip

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """`x` plus what it attends to."""
        y = self.group_norm(x)
        q, k, v = (join(layer(y)) for layer in (self.to_q, self.to_k, self.to_v))
        b, t, h, w, c = q.shape
        frames = t if self.over_clip else 1
        q, k, v = (each.reshape(b * t // frames, frames * h * w, c) for each in (q, k, v))
        return x + self.to_out[0](cut(attend(q, k, v, frames=frames).reshape(b, t, h, w, c)))


class MidBlock(nnx.Module):
    """Base of the blocks at the latent's resolution: residual block, attention, residual block."""

    def __init__(self, blocks: Sequence[nnx.Module], attention: AttentionBlock):
        self.resnets = nnx.List(blocks)
        self.attentions = nnx.List([attention])

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class ClipEncoder(nnx.Module, abc.ABC):
    """Network from whole clips to the moments of the posterior."""

    @abc.abstractmethod
    def __call__(
        self, video: Float[Array, "b t h w 3"]
    ) -> tuple[Float[Array, "b _t _h _w zz"], tuple[Array, ...]]:
        """Mean and log-variance side by side, before any `quant_conv`, and stage features."""


class WholeClipVAE(VideoVAE):
    """Base of the families whose clips cannot be encoded in chunks.

    Attributes:
        encoder: network to the moments.
        decoder: network from the latent to the video.
        quant_conv: 1x1 convolution of the moments; None in families without one.
        post_quant_conv: 1x1 convolution of the latent; None in families without one.
    """

    remat_policies: ClassVar[tuple[str, ...]] = POLICIES
    encoder: ClipEncoder
    decoder: Callable[[Array], Array]
    quant_conv: Callable[[Array], Array] | None = None
    post_quant_conv: Callable[[Array], Array] | None = None

    def posterior(
        self, video: Float[Array, "b t h w 3"], cache: StreamCache | None = None
    ) -> Encoded:
        """See `VideoVAE.posterior`; log-variances are clamped to [-30, 20].

        Raises:
            ValueError: there is a cache.
        """
        self._refuse_streaming(cache)
        moments, stages = self.encode_clip(video)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        return Encoded.of_moments(moments, stages)

    def decode(
        self, z: Float[Array, "b t h w z"], cache: StreamCache | None = None
    ) -> Float[Array, "b T H W 3"]:
        """See `VideoVAE.decode`.

        Raises:
            ValueError: there is a cache.
        """
        self._refuse_streaming(cache)
        return self.decode_clip(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def encode_clip(self, video: Float[Array, "b t h w 3"]) -> tuple[Array, tuple[Array, ...]]:
        """Moments and stage features of a whole clip."""
        return self.encoder(video)

    def decode_clip(self, z: Float[Array, "b t h w z"]) -> Float[Array, "b T H W 3"]:
        """Video of a whole clip's latents."""
        return self.decoder(z)

    def _refuse_streaming(self, cache: StreamCache | None) -> None:
        if cache is not None:
            raise ValueError(
                f"the {self.config.family} VAE cannot be streamed exactly: what it makes of a "
                "frame depends on other chunks of the clip; give it whole clips or windows"
            )


def _consecutive(before: int, after: int, blocks: int) -> Widths:
    return [(before, after)] + [(after, after)] * (blocks - 1)
