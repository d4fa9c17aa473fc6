"""Stable Video Diffusion's VAE: an encoder of single frames, and a decoder that sees the clip."""

from typing import Unpack

from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.svd.config import SVDConfig
from pyratok_jax.models.svd.layers import (
    MidBlock,
    Resample,
    ResidualBlock,
    SpaceTimeBlock,
    frame_norm,
    over_time,
)
from pyratok_jax.models.vae_parts import ClipEncoder, ResidualStage, WholeClipVAE
from pyratok_jax.nn.causal_conv import Conv2d, LayerSettings, TimeConv
from pyratok_jax.nn.halo import cut, in_strips, join, strips_of
from pyratok_jax.nn.remat import rematerialised
from pyratok_jax.nn.stream_cache import StreamCache


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
