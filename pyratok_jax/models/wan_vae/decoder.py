"""Decoder of the Wan VAE: latents to video, not clamped."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.encoder import rematerialised
from pyratok_jax.models.wan_vae.layers import CausalConv3d, ChannelNorm, MidBlock, ResidualBlock
from pyratok_jax.models.wan_vae.resample import Upsample, duplicate_up


class UpStage(nnx.Module):
    """Residual blocks, then upsampling (all stages but the last)."""

    def __init__(self, config: WanVAEConfig, index: int, **settings):
        before, after = config.decoder_dims[index : index + 2]
        last = index == len(config.dim_mult) - 1
        # In the plain layout the upsampler before this stage has already halved the width.
        if index > 0 and not config.is_residual:
            before //= 2
        widths = [before] + [after] * (config.num_res_blocks + 1)
        self.resnets = nnx.List(
            [ResidualBlock(a, b, **settings) for a, b in zip(widths, widths[1:], strict=False)]
        )
        doubles_time = not last and config.temporal_downsample[::-1][index]
        out = after if config.is_residual else after // 2
        self.upsampler = (
            None if last else Upsample(after, out, doubles_time=doubles_time, **settings)
        )
        self.features = out
        self.shortcut = (2 if doubles_time else 1, 2) if config.is_residual and not last else None

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 d"]:
        """The stage's output, upsampled."""
        y = x
        for block in self.resnets:
            y = block(y)
        if self.upsampler is not None:
            y = self.upsampler(y)
        return y if self.shortcut is None else y + duplicate_up(x, self.features, *self.shortcut)


class Decoder(nnx.Module):
    """Convolution, middle block, four stages, output head."""

    def __init__(self, config: WanVAEConfig, *, remat: str = "none", **settings):
        dims = config.decoder_dims
        self.conv_in = CausalConv3d(config.z_dim, dims[0], (3, 3, 3), **settings)
        self.mid_block = MidBlock(dims[0], **settings)
        self.stages = nnx.List(
            [UpStage(config, index, **settings) for index in range(len(config.dim_mult))]
        )
        self.norm_out = ChannelNorm(dims[-1], param_dtype=settings.get("param_dtype", jnp.float32))
        self.conv_out = CausalConv3d(dims[-1], config.out_channels, (3, 3, 3), **settings)
        self.remat = remat

    def __call__(self, z: Float[Array, "b t h w z"]) -> Float[Array, "b T H W c"]:
        """Decode latents to patchified video."""
        run = rematerialised(self.remat)
        x = run(self.mid_block, self.conv_in(z))
        for stage in self.stages:
            x = run(stage, x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))
