"""The HunyuanVideo VAE over whole clips, as it was trained (diffusers cuts time into tiles)."""

from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.hunyuan_video.config import HunyuanVideoConfig
from pyratok_jax.models.hunyuan_video.layers import Downsample, MidBlock, ResidualBlock, Upsample
from pyratok_jax.models.vae_parts import ClipEncoder, ResidualStage, WholeClipVAE
from pyratok_jax.nn.causal_conv import CausalConv3d, LayerSettings
from pyratok_jax.nn.first_frame_conv import FirstFrameConv3d
from pyratok_jax.nn.group_norm import GroupNorm
from pyratok_jax.nn.halo import cut, in_strips, join, strips_of
from pyratok_jax.nn.remat import rematerialised
from pyratok_jax.nn.stream_cache import StreamCache


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
