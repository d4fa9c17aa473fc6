"""Decoder of the Wan VAE: latents to video, not clamped."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.vae_parts import ResidualStage
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.layers import ChannelNorm, MidBlock, ResidualBlock
from pyratok_jax.models.wan_vae.resample import Upsample, duplicate_up
from pyratok_jax.nn.causal_conv import CausalConv3d
from pyratok_jax.nn.halo import cut, in_strips, join, strips_of
from pyratok_jax.nn.lowering import padded_lanes
from pyratok_jax.nn.remat import rematerialised
from pyratok_jax.nn.stream_cache import StreamCache


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
