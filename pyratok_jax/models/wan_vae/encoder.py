"""Encoder of the Wan VAE: video to the moments of the latent, with its four stage features."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.vae_parts import ResidualStage
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.layers import ChannelNorm, MidBlock, ResidualBlock
from pyratok_jax.models.wan_vae.resample import Downsample, average_down
from pyratok_jax.nn.causal_conv import CausalConv3d
from pyratok_jax.nn.halo import cut, in_strips, join, strips_of
from pyratok_jax.nn.lowering import padded_lanes, trim
from pyratok_jax.nn.remat import rematerialised
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
