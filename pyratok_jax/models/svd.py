"""Stable Video Diffusion's VAE (arXiv 2311.15127): 1x8x8, 4 latent channels.

The encoder sees single frames; the decoder blends layers over space and over time, and sees the
whole clip.
"""

import dataclasses
from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pyratok_jax.models import vae_parts
from pyratok_jax.models.vae_config import check_multiples
from pyratok_jax.models.vae_parts import (
    AttentionBlock,
    ClipEncoder,
    HalvingVAEConfig,
    ResidualStage,
    WholeClipVAE,
)
from pyratok_jax.nn.causal_conv import KEPT, Conv2d, LayerSettings, TimeConv
from pyratok_jax.nn.group_norm import GroupNorm
from pyratok_jax.nn.halo import cut, in_strips, join, strips_of
from pyratok_jax.nn.remat import rematerialised
from pyratok_jax.nn.settings import Stride
from pyratok_jax.nn.stream_cache import StreamCache

GROUPS = 32  # of every norm


@dataclasses.dataclass(frozen=True)
class SVDConfig(HalvingVAEConfig):
    """Sizes of one VAE; defaults are the published ones. Time is not reduced.

    Widths must be multiples of 32, the groups of its norms.
    """

    family: ClassVar[str] = "svd"

    z_dim: int = 4
    latents_mean: tuple[float, ...] = (0.0,) * 4
    latents_std: tuple[float, ...] = (1 / 0.18215,) * 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_multiples("widths", self.widths, GROUPS)

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


def frame_norm(features: int, **settings) -> GroupNorm:
    """Group norm over each frame, 32 groups."""
    param_dtype = settings.get("param_dtype", jnp.float32)
    return GroupNorm(features, GROUPS, epsilon=1e-6, per_frame=True, param_dtype=param_dtype)


class ResidualBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv of every frame, plus a shortcut."""

    def __init__(self, before: int, after: int, **settings):
        self.norm1 = frame_norm(before, **settings)
        self.conv1 = Conv2d(before, after, (3, 3), **settings)
        self.norm2 = frame_norm(after, **settings)
        self.conv2 = Conv2d(after, after, (3, 3), **settings)
        self.conv_shortcut = Conv2d(before, after, (1, 1), **settings) if before != after else None

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w d"]:
        """The block's output; the shortcut reads the un-normalised input."""
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = checkpoint_name(self.conv1(self.norm1(x, activate=True), (1, 1)), KEPT)
        return checkpoint_name(self.conv2(self.norm2(x, activate=True), (1, 1)) + shortcut, KEPT)


class TimeBlock(nnx.Module):
    """norm, SiLU, convolution over time, twice, plus the input; a frame sees those around it."""

    def __init__(self, features: int, **settings):
        param_dtype = settings.get("param_dtype", jnp.float32)
        self.norm1, self.norm2 = (
            GroupNorm(features, GROUPS, epsilon=1e-5, param_dtype=param_dtype) for _ in range(2)
        )
        self.conv1, self.conv2 = (
            TimeConv(features, features, (3, 1, 1), **settings) for _ in range(2)
        )

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        y = over_time(self.conv1, self.norm1(x, activate=True))
        return x + over_time(self.conv2, self.norm2(y, activate=True))


def over_time(layer: TimeConv, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
    """`layer` with one zero frame before and one after the clip."""
    return layer(jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0))))


class TimeMixer(nnx.Module):
    """A learned blend of two features."""

    def __init__(self, **settings):
        self.mix_factor = nnx.Param(jnp.zeros((1,), settings.get("param_dtype", jnp.float32)))

    def __call__(
        self, space: Float[Array, "b t h w c"], time: Float[Array, "b t h w c"]
    ) -> Float[Array, "b t h w c"]:
        """(1 - s) space + s time, s = sigmoid(mix_factor)."""
        wide = jnp.promote_types(space.dtype, jnp.float32)
        s = jax.nn.sigmoid(self.mix_factor[...].astype(wide)).astype(space.dtype)
        return (1 - s) * space + s * time


class SpaceTimeBlock(nnx.Module):
    """A residual block of every frame, blended with one over time of its output."""

    def __init__(self, before: int, after: int, **settings):
        self.spatial_res_block = ResidualBlock(before, after, **settings)
        self.temporal_res_block = TimeBlock(after, **settings)
        self.time_mixer = TimeMixer(**settings)

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w d"]:
        """The block's output."""
        x = self.spatial_res_block(x)
        return self.time_mixer(x, self.temporal_res_block(x))


class MidBlock(vae_parts.MidBlock):
    """A block, attention within frames, a block; `block` is the class of its blocks."""

    def __init__(self, features: int, block: type[ResidualBlock | SpaceTimeBlock], **settings):
        blocks = [block(features, features, **settings) for _ in range(2)]
        norm = frame_norm(features, **settings)
        super().__init__(blocks, AttentionBlock(norm, over_clip=False, **settings))


class Resample(nnx.Module):
    """The convolution after or before a change of size."""

    def __init__(self, features: int, **settings):
        self.conv = Conv2d(features, features, (3, 3), **settings)


class DownStage(ResidualStage):
    """Residual blocks, then half the size (all stages but the last)."""

    def __init__(self, config: SVDConfig, index: int, *, remat: str, **settings):
        widths = config.encoder_blocks(index)
        super().__init__([ResidualBlock(*w, **settings) for w in widths], remat)
        last = index == len(config.widths) - 1
        self.downsamplers = nnx.List([] if last else [Resample(widths[-1][1], **settings)])

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h2 w2 d"]:
        """The stage's output, downsampled."""
        x = self.residual(x)
        for layer in self.downsamplers:
            x = layer.conv(x, padding=(0, 1), stride=2)
        return x


class UpStage(ResidualStage):
    """Blocks over space and time, then twice the size (all stages but the last)."""

    def __init__(self, config: SVDConfig, index: int, *, remat: str, **settings):
        widths = config.decoder_blocks(index)
        super().__init__([SpaceTimeBlock(*w, **settings) for w in widths], remat)
        last = index == len(config.widths) - 1
        self.upsamplers = nnx.List([] if last else [Resample(widths[-1][1], **settings)])

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h2 w2 d"]:
        """The stage's output, upsampled."""
        x = self.residual(x)
        for layer in self.upsamplers:
            x = layer.conv.after_upsampling(x)
        return x


class Encoder(ClipEncoder):
    """Convolution, stages, middle block, output head, all of single frames."""

    def __init__(self, config: SVDConfig, *, remat: str, **settings):
        wide = config.widths
        self.conv_in = Conv2d(3, wide[0], (3, 3), **settings)
        self.down_blocks = nnx.List(
            [DownStage(config, index, remat=remat, **settings) for index in range(len(wide))]
        )
        self.mid_block = MidBlock(wide[-1], ResidualBlock, **settings)
        self.conv_norm_out = frame_norm(wide[-1], **settings)
        self.conv_out = Conv2d(wide[-1], 2 * config.z_dim, (3, 3), **settings)
        self.stride, self.remat = config.spatial_factor, remat

    def __call__(self, x: Float[Array, "b t h w 3"]) -> tuple[Array, tuple[Array, ...]]:
        """Moments (b, t, h', w', 2 z) before the quant_conv, and stage features."""
        run = rematerialised(self.remat, x.size // x.shape[-1])
        stages = []
        with in_strips(strips_of(x.shape[2], self.stride)):
            x = self.conv_in(cut(x), (1, 1))
            for stage in self.down_blocks:
                x = run(stage, x)
                stages.append(join(x))
            x = run(self.mid_block, x)
            return join(self.conv_out(self.conv_norm_out(x, activate=True), (1, 1))), tuple(stages)


class Decoder(nnx.Module):
    """Convolution, middle block, stages, output head, a last convolution over time."""

    def __init__(self, config: SVDConfig, *, remat: str, **settings):
        wide = config.widths
        self.conv_in = Conv2d(config.z_dim, wide[-1], (3, 3), **settings)
        self.mid_block = MidBlock(wide[-1], SpaceTimeBlock, **settings)
        self.up_blocks = nnx.List(
            [UpStage(config, index, remat=remat, **settings) for index in range(len(wide))]
        )
        self.conv_norm_out = frame_norm(wide[0], **settings)
        self.conv_out = Conv2d(wide[0], 3, (3, 3), **settings)
        self.time_conv_out = TimeConv(3, 3, (3, 1, 1), **settings)
        self.factor, self.remat = config.spatial_factor, remat

    def __call__(self, z: Float[Array, "b t h w z"]) -> Float[Array, "b t H W 3"]:
        """Video of a whole clip's latents, not clamped."""
        run = rematerialised(self.remat, z.size // z.shape[-1] * self.factor**2)
        with in_strips(strips_of(z.shape[2])):
            x = run(self.mid_block, self.conv_in(cut(z), (1, 1)))
            for stage in self.up_blocks:
                x = run(stage, x)
            x = self.conv_out(self.conv_norm_out(x, activate=True), (1, 1))
            return join(over_time(self.time_conv_out, x))


class SVDVAE(WholeClipVAE):
    """The VAE. Its decoder sees later frames, and its norms the whole clip: nothing streams."""

    config: SVDConfig

    def __init__(
        self, config: SVDConfig, *, remat: str = "none", **settings: Unpack[LayerSettings]
    ):
        """Build with random weights; see `VideoVAE`. Published use computes in float32."""
        self.config = config
        self.encoder = Encoder(config, remat=remat, **settings)
        self.decoder = Decoder(config, remat=remat, **settings)
        self.quant_conv = Conv2d(2 * config.z_dim, 2 * config.z_dim, (1, 1), **settings)
