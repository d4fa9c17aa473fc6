"""The CogVideoX VAE: encoder, and a decoder whose definition is one in parts of two latents."""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.cogvideox.config import CogVideoXConfig
from pyratok_jax.models.cogvideox.layers import (
    Downsample,
    ResidualBlock,
    SpatialNorm,
    Upsample,
    average_pairs,
    is_first,
)
from pyratok_jax.models.vae_parts import ClipEncoder, ResidualStage, WholeClipVAE
from pyratok_jax.nn.causal_conv import LayerSettings
from pyratok_jax.nn.first_frame_conv import FirstFrameConv3d
from pyratok_jax.nn.group_norm import GroupNorm
from pyratok_jax.nn.halo import cut, in_strips, join, strips_of
from pyratok_jax.nn.remat import rematerialised
from pyratok_jax.nn.stream_cache import StreamCache, in_parts

DECODE_LATENTS = 2  # latent frames over which the decoder's norms take their statistics


class DownStage(ResidualStage):
    """Residual blocks, then half the size (all stages but the last) and half the frames (maybe)."""

    def __init__(self, config: CogVideoXConfig, index: int, *, remat: str, **settings):
        widths = config.encoder_blocks(index)
        super().__init__([ResidualBlock(*w, config.groups, **settings) for w in widths], remat)
        last = index == len(config.widths) - 1
        self.downsamplers = nnx.List([] if last else [Downsample(widths[-1][1], **settings)])
        self.halves_time = index < config.time_levels

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> tuple[Float[Array, "b t h2 w2 d"], Float[Array, "b t2 h2 w2 d"]]:
        """The stage's feature, before time is halved, and the next stage's input."""
        x = self.residual(x, cache)
        for layer in self.downsamplers:
            x = layer(x)
        return x, average_pairs(x, first=is_first(cache)) if self.halves_time else x


class UpStage(nnx.Module):
    """Residual blocks, then twice the size (all stages but the last) and frames (maybe)."""

    def __init__(self, config: CogVideoXConfig, index: int, **settings):
        widths = config.decoder_blocks(index)
        self.resnets = nnx.List(
            [ResidualBlock(*w, config.groups, config.z_dim, **settings) for w in widths]
        )
        last = index == len(config.widths) - 1
        doubles = {"doubles_time": index < config.time_levels}
        self.upsamplers = nnx.List([] if last else [Upsample(widths[-1][1], **doubles, **settings)])

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        cache: StreamCache | None,
        z: Float[Array, "b t2 h2 w2 z"],
    ) -> Float[Array, "b t3 h3 w3 d"]:
        """The stage's output, upsampled."""
        for block in self.resnets:
            x = block(x, cache, z)
        for layer in self.upsamplers:
            x = layer(x, first=is_first(cache))
        return x


class MidBlock(nnx.Module):
    """Two residual blocks at the latent's resolution."""

    def __init__(self, features: int, groups: int, latent: int = 0, **settings):
        self.resnets = nnx.List(
            [ResidualBlock(features, features, groups, latent, **settings) for _ in range(2)]
        )

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        cache: StreamCache | None = None,
        z: Float[Array, "b t h w z"] | None = None,
    ) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        for block in self.resnets:
            x = block(x, cache, z)
        return x


class Encoder(ClipEncoder):
    """Convolution, stages, middle block, output head."""

    def __init__(self, config: CogVideoXConfig, *, remat: str, **settings):
        param = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        wide = config.widths
        self.conv_in = FirstFrameConv3d(3, wide[0], **settings)
        self.down_blocks = nnx.List(
            [DownStage(config, index, remat=remat, **settings) for index in range(len(wide))]
        )
        self.mid_block = MidBlock(wide[-1], config.groups, **settings)
        self.norm_out = GroupNorm(wide[-1], config.groups, **param)
        self.conv_out = FirstFrameConv3d(wide[-1], 2 * config.z_dim, **settings)
        self.stride, self.remat = config.spatial_factor, remat

    def __call__(
        self, x: Float[Array, "b t h w 3"], cache: StreamCache | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        """Moments (b, t', h', w', 2 z) and stage features; with a cache, of one part of a clip."""
        run = rematerialised(self.remat, x.size // x.shape[-1])
        stages = []
        with in_strips(strips_of(x.shape[2], self.stride)):
            x = self.conv_in(cut(x), cache)
            for stage in self.down_blocks:
                feature, x = run(stage, x, cache)
                stages.append(join(feature))
            x = run(self.mid_block, x, cache)
            return join(self.conv_out(self.norm_out(x, activate=True), cache)), tuple(stages)


class Decoder(nnx.Module):
    """Convolution, middle block, stages, output head; every norm is conditioned on the latent."""

    def __init__(self, config: CogVideoXConfig, **settings):
        wide = config.widths
        self.conv_in = FirstFrameConv3d(config.z_dim, wide[-1], **settings)
        self.mid_block = MidBlock(wide[-1], config.groups, config.z_dim, **settings)
        self.up_blocks = nnx.List(
            [UpStage(config, index, **settings) for index in range(len(wide))]
        )
        self.norm_out = SpatialNorm(wide[0], config.z_dim, config.groups, **settings)
        self.conv_out = FirstFrameConv3d(wide[0], 3, **settings)

    def __call__(
        self, z: Float[Array, "b t h w z"], cache: StreamCache | None = None
    ) -> Float[Array, "b T H W 3"]:
        """Video of one part of a clip's latents."""
        with in_strips(strips_of(z.shape[2])):
            z = cut(z)
            x = self.mid_block(self.conv_in(z, cache), cache, z)
            for stage in self.up_blocks:
                x = stage(x, cache, z)
            return join(self.conv_out(self.norm_out(x, z, first=is_first(cache)), cache))


class CogVideoXVAE(WholeClipVAE):
    """The VAE. Its norms take statistics over several frames, so clips are not streamed.

    The decoder runs over parts of two latent frames with their own statistics, the first part
    having three where the number is odd; frame 0 stands apart in the first part alone.
    """

    config: CogVideoXConfig
    decoder: Decoder

    def __init__(
        self, config: CogVideoXConfig, *, remat: str = "none", **settings: Unpack[LayerSettings]
    ):
        """Build with random weights; see `VideoVAE`."""
        self.config, self.remat = config, remat
        self.encoder = Encoder(config, remat=remat, **settings)
        self.decoder = Decoder(config, **settings)

    def encode_clip(self, video: Float[Array, "b t h w 3"]) -> tuple[Array, tuple[Array, ...]]:
        """Moments and stage features, in parts of `config.encode_frames`."""
        frames, part = video.shape[1], self.config.encode_frames
        if part and frames > part:
            first = part + frames % part
            keep = self.remat != "none"
            return in_parts(self.encoder, video, first, part, remat=keep)
        return self.encoder(video)

    def decode_clip(self, z: Float[Array, "b t h w z"]) -> Float[Array, "b T H W 3"]:
        """Video of latents, in parts of `DECODE_LATENTS`."""
        frames = z.shape[1]
        first = min(frames, DECODE_LATENTS + frames % 2)
        return in_parts(self.decoder, z, first, DECODE_LATENTS, remat=self.remat != "none")
