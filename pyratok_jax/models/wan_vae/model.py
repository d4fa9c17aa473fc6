"""The Wan VAE in whole-clip form: for 4k+1 frames it equals the reference's chunked, cached run.

The encoder gives the moments of the latent and its four stage features; the decoder gives video
that is not clamped.
"""

from typing import ClassVar, NamedTuple, Unpack

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.vae_parts import ResidualStage
from pyratok_jax.models.video_vae import Encoded, VideoVAE
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.layers import (
    ChannelNorm,
    Downsample,
    MidBlock,
    ResidualBlock,
    Upsample,
    average_down,
    duplicate_up,
    patchify,
    unpatchify,
)
from pyratok_jax.models.wan_vae.linear import LinearPath
from pyratok_jax.nn.causal_conv import CausalConv3d, LayerSettings
from pyratok_jax.nn.halo import cut, in_strips, join, strips_of
from pyratok_jax.nn.lowering import padded_lanes, trim
from pyratok_jax.nn.remat import rematerialised
from pyratok_jax.nn.settings import POLICIES
from pyratok_jax.nn.stream_cache import StreamCache


class EncoderOutput(NamedTuple):
    """Raw moments (b, t', h', w', 2 z) before the 1x1x1 quant_conv, and the stage features."""

    moments: Array
    stages: tuple[Array, ...]


class DownStage(ResidualStage):
    """Residual blocks, then downsampling (all stages but the last)."""

    def __init__(self, config: WanVAEConfig, index: int, *, remat: str = "none", **settings):
        wide, last = config.encoder_dims[index : index + 2], index == len(config.dim_mult) - 1
        widths = [wide[0]] + [wide[1]] * config.num_res_blocks
        pairs = zip(widths, widths[1:], strict=False)
        super().__init__([ResidualBlock(a, b, **settings) for a, b in pairs], remat)
        halves_time = not last and config.temporal_downsample[index]
        halves_space = not last and config.halves_space[index]
        halves = {"halves_time": halves_time, "halves_space": halves_space}
        self.downsampler = None if last else Downsample(wide[1], **halves, **settings)
        self.features = wide[1]
        strides = (2 if halves_time else 1, 2 if halves_space else 1)
        self.shortcut = strides if config.is_residual else None

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """The stage's output, downsampled."""
        y = self.residual(x, cache)
        if self.downsampler is not None:
            y = self.downsampler(y, cache)
        return y if self.shortcut is None else y + average_down(x, self.features, *self.shortcut)


class Encoder(nnx.Module):
    """Convolution, four stages, middle block, output head."""

    def __init__(self, config: WanVAEConfig, *, remat: str = "none", **settings):
        dims = config.encoder_dims
        self.conv_in = CausalConv3d(config.in_channels, dims[0], (3, 3, 3), **settings)
        self.stages = nnx.List(
            [
                DownStage(config, index, remat=remat, **settings)
                for index in range(len(config.dim_mult))
            ]
        )
        self.mid_block = MidBlock(dims[-1], **settings)
        self.norm_out = ChannelNorm(dims[-1], param_dtype=settings.get("param_dtype", jnp.float32))
        self.conv_out = CausalConv3d(dims[-1], 2 * config.z_dim, (3, 3, 3), **settings)
        self.remat = remat
        self.stride = 2 ** sum(config.halves_space)
        # Shortcuts around whole stages regroup channels, so theirs must be exact.
        self.may_pad = not config.is_residual

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> EncoderOutput:
        """Encode patchified video; with a cache, one chunk of it."""
        run = rematerialised(self.remat, x.size // x.shape[-1])
        features = []
        with in_strips(strips_of(x.shape[2], self.stride)):
            x = cut(x)
            with padded_lanes(self.may_pad):
                x = self.conv_in(x, cache)
                for stage in self.stages:
                    x = run(stage, x, cache)
                    features.append(join(trim(x, stage.features)))
                x = trim(x, self.stages[-1].features)
            x = run(self.mid_block, x, cache)
            x = join(self.conv_out(self.norm_out(x, activate=True), cache))
        return EncoderOutput(x, tuple(features))


class UpStage(ResidualStage):
    """Residual blocks, then upsampling (all stages but the last)."""

    def __init__(self, config: WanVAEConfig, index: int, *, remat: str = "none", **settings):
        before, after = config.decoder_dims[index : index + 2]
        last = index == len(config.dim_mult) - 1
        # In the plain layout the upsampler before this stage has already halved the width.
        if index > 0 and not config.is_residual:
            before //= 2
        widths = [before] + [after] * (config.num_res_blocks + 1)
        pairs = zip(widths, widths[1:], strict=False)
        super().__init__([ResidualBlock(a, b, **settings) for a, b in pairs], remat)
        doubles_time = not last and config.temporal_downsample[::-1][index]
        doubles_space = not last and config.halves_space[::-1][index]
        out = after if config.is_residual else after // 2
        doubles = {"doubles_time": doubles_time, "doubles_space": doubles_space}
        self.upsampler = None if last else Upsample(after, out, **doubles, **settings)
        self.features = out
        strides = (2 if doubles_time else 1, 2 if doubles_space else 1)
        self.shortcut = strides if config.is_residual and not last else None

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """The stage's output, upsampled."""
        y = self.residual(x, cache)
        if self.upsampler is not None:
            y = self.upsampler(y, cache)
        if self.shortcut is None:
            return y
        first = cache is None or cache.first
        return y + duplicate_up(x, self.features, *self.shortcut, first=first)


class Decoder(nnx.Module):
    """Convolution, middle block, four stages, output head."""

    def __init__(self, config: WanVAEConfig, *, remat: str = "none", **settings):
        dims = config.decoder_dims
        self.conv_in = CausalConv3d(config.z_dim, dims[0], (3, 3, 3), **settings)
        self.mid_block = MidBlock(dims[0], **settings)
        self.stages = nnx.List(
            [
                UpStage(config, index, remat=remat, **settings)
                for index in range(len(config.dim_mult))
            ]
        )
        self.norm_out = ChannelNorm(dims[-1], param_dtype=settings.get("param_dtype", jnp.float32))
        self.conv_out = CausalConv3d(dims[-1], config.out_channels, (3, 3, 3), **settings)
        self.remat = remat
        self.spatial_factor = 2 ** sum(config.halves_space)
        self.temporal_factor = 2 ** sum(config.temporal_downsample)
        self.may_pad = not config.is_residual

    def __call__(
        self, z: Float[Array, "b t h w z"], cache: StreamCache | None = None
    ) -> Float[Array, "b T H W c"]:
        """Decode latents to patchified video; with a cache, one chunk of it."""
        b, t, h, w, _ = z.shape
        pixels = b * (1 + (t - 1) * self.temporal_factor) * h * w * self.spatial_factor**2
        run = rematerialised(self.remat, pixels)
        with in_strips(strips_of(z.shape[2])):
            x = run(self.mid_block, self.conv_in(cut(z), cache), cache)
            with padded_lanes(self.may_pad):
                for stage in self.stages:
                    x = run(stage, x, cache)
                return join(self.conv_out(self.norm_out(x, activate=True), cache))


class WanVAE(VideoVAE):
    """Encoder and decoder with the 1x1x1 convolutions around the latent."""

    remat_policies: ClassVar[tuple[str, ...]] = POLICIES
    config: WanVAEConfig
    encoder: Encoder

    def __init__(
        self, config: WanVAEConfig, *, remat: str = "none", **settings: Unpack[LayerSettings]
    ):
        """Build with random weights; `remat` is of `nn.settings.POLICIES`, see there."""
        self.config = config
        z = config.z_dim
        self.encoder = Encoder(config, remat=remat, **settings)
        self.decoder = Decoder(config, remat=remat, **settings)
        self.quant_conv = CausalConv3d(2 * z, 2 * z, (1, 1, 1), **settings)
        self.post_quant_conv = CausalConv3d(z, z, (1, 1, 1), **settings)
        self.linear = nnx.data(LinearPath(config, **settings) if config.linear_path else None)

    def posterior(
        self, video: Float[Array, "b t h w 3"], cache: StreamCache | None = None
    ) -> Encoded:
        """See `VideoVAE.posterior`; log-variances are clamped to [-30, 20]."""
        moments, stages = self.encoder(patchify(video, self.config.patch), cache)
        encoded = Encoded.of_moments(self.quant_conv(moments), stages)
        if self.linear is None:
            return encoded
        linear = self.linear.encode(video, first=cache is None or cache.first)
        return encoded._replace(mean=encoded.mean + linear)

    def decode(
        self, z: Float[Array, "b t h w z"], cache: StreamCache | None = None
    ) -> Float[Array, "b T H W 3"]:
        """See `VideoVAE.decode`."""
        video = unpatchify(self.decoder(self.post_quant_conv(z), cache), self.config.patch)
        return video if self.linear is None else video + self.linear.decode(z, cache)
