"""The HunyuanVideo VAE (arXiv 2412.03603): 4x8x8, 16 latent channels.

It runs over whole clips, as it was trained (diffusers cuts time into tiles). The past of every
convolution is copies of its first input frame; frames are padded with copies of their edges.
"""

import dataclasses
from typing import ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pyratok_jax.models import vae_parts
from pyratok_jax.models.vae_parts import (
    AttentionBlock,
    ClipEncoder,
    ResidualStage,
    TimeHalvingVAEConfig,
    WholeClipVAE,
)
from pyratok_jax.nn.causal_conv import KEPT, CausalConv3d, FirstFrameConv3d, LayerSettings
from pyratok_jax.nn.group_norm import GroupNorm
from pyratok_jax.nn.halo import cut, in_strips, join, strips_of
from pyratok_jax.nn.remat import rematerialised
from pyratok_jax.nn.settings import Stride
from pyratok_jax.nn.stream_cache import StreamCache


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


class ResidualBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus a 1x1x1 shortcut where the width changes."""

    def __init__(self, before: int, after: int, groups: int, **settings):
        param = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        self.norm1 = GroupNorm(before, groups, **param)
        self.conv1 = FirstFrameConv3d(before, after, edges="replicate", **settings)
        self.norm2 = GroupNorm(after, groups, **param)
        self.conv2 = FirstFrameConv3d(after, after, edges="replicate", **settings)
        self.conv_shortcut = (
            FirstFrameConv3d(before, after, (1, 1, 1), **settings) if before != after else None
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w d"]:
        """The block's output; the shortcut reads the un-normalised input."""
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = checkpoint_name(self.conv1(self.norm1(x, activate=True)), KEPT)
        return checkpoint_name(self.conv2(self.norm2(x, activate=True)) + shortcut, KEPT)


class MidBlock(vae_parts.MidBlock):
    """Attention over the clip, between residual blocks."""

    def __init__(self, features: int, groups: int, **settings):
        blocks = [ResidualBlock(features, features, groups, **settings) for _ in range(2)]
        param = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        norm = GroupNorm(features, groups, **param)
        super().__init__(blocks, AttentionBlock(norm, over_clip=True, **settings))


class Downsample(nnx.Module):
    """A 3x3x3 convolution with stride 2 in space and maybe time: 1 + 2n frames become 1 + n."""

    def __init__(self, features: int, *, halves_time: bool, **settings):
        strides = (2 if halves_time else 1, 2, 2)
        self.conv = FirstFrameConv3d(
            features, features, strides=strides, edges="replicate", **settings
        )

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 c"]:
        """Smaller frames, maybe fewer."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest neighbour in space and maybe time, with frame 0 kept single; then a convolution."""

    def __init__(self, features: int, *, doubles_time: bool, **settings):
        self.conv = FirstFrameConv3d(features, features, edges="replicate", **settings)
        self.doubles_time = doubles_time

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 c"]:
        """1 + n frames become 1 + 2n where time is doubled."""
        if self.doubles_time:
            x = jnp.concatenate([x[:, :1], jnp.repeat(x[:, 1:], 2, axis=1)], axis=1)
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3))


class DownStage(ResidualStage):
    """Residual blocks, then smaller frames (all stages but the last)."""

    def __init__(self, config: HunyuanVideoConfig, index: int, *, remat: str, **settings):
        widths = config.encoder_blocks(index)
        super().__init__([ResidualBlock(*w, config.groups, **settings) for w in widths], remat)
        self.downsamplers = nnx.List(
            [Downsample(widths[-1][1], halves_time=halves, **settings)
             for halves in config.halves_time[index : index + 1]]
        )  # fmt: skip

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """The stage's output, downsampled."""
        x = self.residual(x)
        for layer in self.downsamplers:
            x = layer(x)
        return x


class UpStage(ResidualStage):
    """Residual blocks, then larger frames (all stages but the last)."""

    def __init__(self, config: HunyuanVideoConfig, index: int, *, remat: str, **settings):
        widths = config.decoder_blocks(index)
        super().__init__([ResidualBlock(*w, config.groups, **settings) for w in widths], remat)
        # The decoder doubles time last, as the encoder halves it last.
        self.upsamplers = nnx.List(
            [Upsample(widths[-1][1], doubles_time=doubles, **settings)
             for doubles in config.halves_time[index : index + 1]]
        )  # fmt: skip

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """The stage's output, upsampled."""
        x = self.residual(x)
        for layer in self.upsamplers:
            x = layer(x)
        return x


class Encoder(ClipEncoder):
    """Convolution, stages, middle block, output head."""

    def __init__(self, config: HunyuanVideoConfig, *, remat: str, **settings):
        param = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        wide = config.widths
        self.conv_in = FirstFrameConv3d(3, wide[0], edges="replicate", **settings)
        self.down_blocks = nnx.List(
            [DownStage(config, index, remat=remat, **settings) for index in range(len(wide))]
        )
        self.mid_block = MidBlock(wide[-1], config.groups, **settings)
        self.conv_norm_out = GroupNorm(wide[-1], config.groups, **param)
        self.conv_out = FirstFrameConv3d(wide[-1], 2 * config.z_dim, edges="replicate", **settings)
        self.stride, self.remat = config.spatial_factor, remat

    def __call__(self, x: Float[Array, "b t h w 3"]) -> tuple[Array, tuple[Array, ...]]:
        """Moments (b, t', h', w', 2 z) before the quant_conv, and stage features."""
        run = rematerialised(self.remat, x.size // x.shape[-1])
        stages = []
        with in_strips(strips_of(x.shape[2], self.stride)):
            x = self.conv_in(cut(x))
            for stage in self.down_blocks:
                x = run(stage, x)
                stages.append(join(x))
            x = run(self.mid_block, x)
            return join(self.conv_out(self.conv_norm_out(x, activate=True))), tuple(stages)


class Decoder(nnx.Module):
    """Convolution, middle block, stages, output head."""

    def __init__(self, config: HunyuanVideoConfig, *, remat: str, **settings):
        param = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        wide = config.widths
        self.conv_in = FirstFrameConv3d(config.z_dim, wide[-1], edges="replicate", **settings)
        self.mid_block = MidBlock(wide[-1], config.groups, **settings)
        self.up_blocks = nnx.List(
            [UpStage(config, index, remat=remat, **settings) for index in range(len(wide))]
        )
        self.conv_norm_out = GroupNorm(wide[0], config.groups, **param)
        self.conv_out = FirstFrameConv3d(wide[0], 3, edges="replicate", **settings)
        self.factors, self.remat = (config.temporal_factor, config.spatial_factor), remat

    def __call__(self, z: Float[Array, "b t h w z"]) -> Float[Array, "b T H W 3"]:
        """Video of latents, not clamped."""
        b, t, h, w, _ = z.shape
        time, space = self.factors
        run = rematerialised(self.remat, b * (1 + (t - 1) * time) * h * w * space**2)
        with in_strips(strips_of(h)):
            x = run(self.mid_block, self.conv_in(cut(z)))
            for stage in self.up_blocks:
                x = run(stage, x)
            return join(self.conv_out(self.conv_norm_out(x, activate=True)))


class HunyuanVideoVAE(WholeClipVAE):
    """The VAE. Its norms and attention read the whole clip, so clips are not streamed."""

    config: HunyuanVideoConfig

    def __init__(
        self, config: HunyuanVideoConfig, *, remat: str = "none", **settings: Unpack[LayerSettings]
    ):
        """Build with random weights; see `VideoVAE`."""
        z = config.z_dim
        self.config = config
        self.encoder = Encoder(config, remat=remat, **settings)
        self.decoder = Decoder(config, remat=remat, **settings)
        self.quant_conv = CausalConv3d(2 * z, 2 * z, (1, 1, 1), **settings)
        self.post_quant_conv = CausalConv3d(z, z, (1, 1, 1), **settings)
