"""The Mochi VAE: a causal encoder with attention over time, and a causal decoder."""

from typing import Unpack

import jax
from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.mochi.config import MochiConfig
from pyratok_jax.models.mochi.layers import (
    FREQUENCIES,
    Blocks,
    DownBlock,
    UpBlock,
    fourier_features,
    frame_norm,
)
from pyratok_jax.models.vae_parts import ClipEncoder, WholeClipVAE
from pyratok_jax.nn.causal_conv import Conv2d, LayerSettings
from pyratok_jax.nn.first_frame_conv import FirstFrameConv3d
from pyratok_jax.nn.halo import cut, in_strips, join, strips_of
from pyratok_jax.nn.remat import rematerialised
from pyratok_jax.nn.stream_cache import StreamCache


class Encoder(ClipEncoder):
    """Fourier features, blocks without attention, three downsamplings, last blocks, output head."""

    def __init__(self, config: MochiConfig, *, remat: str, **settings):
        wide, layers = config.encoder_widths, config.layers
        pixels = 3 * (1 + 2 * len(FREQUENCIES))
        self.proj_in = Conv2d(pixels, wide[0], (1, 1), **settings)
        self.block_in = Blocks(wide[0], layers[0], attends=False, **settings)
        self.down_blocks = nnx.List(
            [
                DownBlock(wide[i], wide[i + 1], layers[i + 1], time, **settings)
                for i, time in enumerate(config.time_strides)
            ]
        )
        self.block_out = Blocks(wide[-1], layers[-1], attends=True, **settings)
        self.norm_out = frame_norm(wide[-1], **settings)
        self.proj_out = Conv2d(wide[-1], 2 * config.z_dim, (1, 1), use_bias=False, **settings)
        self.stride, self.remat = config.spatial_factor, remat

    def __call__(self, video: Float[Array, "b t h w 3"]) -> tuple[Array, tuple[Array, ...]]:
        """Moments (b, t', h', w', 2 z) and features of the downsamplings and the last blocks."""
        run = rematerialised(self.remat, video.size // 3)
        stages = []
        with in_strips(strips_of(video.shape[2], self.stride)):
            x = run(self.block_in, self.proj_in(fourier_features(cut(video))))
            for block in (*self.down_blocks, self.block_out):
                x = run(block, x)
                stages.append(join(x))
            return join(self.proj_out(self.norm_out(x, activate=True))), tuple(stages)


class Decoder(nnx.Module):
    """Blocks at the latent's resolution, three upsamplings, last blocks, output head."""

    def __init__(self, config: MochiConfig, *, remat: str, **settings):
        wide, layers = config.decoder_widths[::-1], config.layers[::-1]
        self.conv_in = FirstFrameConv3d(config.z_dim, wide[0], (1, 1, 1), **settings)
        self.block_in = Blocks(wide[0], layers[0], attends=False, **settings)
        keeps = {"keeps_first": config.keeps_first_frames}
        self.up_blocks = nnx.List(
            [
                UpBlock(wide[i], wide[i + 1], layers[i + 1], time, **keeps, **settings)
                for i, time in enumerate(config.time_strides[::-1])
            ]
        )
        self.block_out = Blocks(wide[-1], layers[-1], attends=False, **settings)
        self.proj_out = Conv2d(wide[-1], 3, (1, 1), **settings)
        self.factors, self.remat = (config.temporal_factor, config.spatial_factor), remat
        self.surplus = config.temporal_factor - 1 if config.keeps_first_frames else 0

    def __call__(
        self, z: Float[Array, "b t h w z"], cache: StreamCache | None = None
    ) -> Float[Array, "b T H W 3"]:
        """Video of latents, not clamped; with a cache, of one chunk of them."""
        b, t, h, w, _ = z.shape
        run = rematerialised(self.remat, b * t * h * w * self.factors[0] * self.factors[1] ** 2)
        with in_strips(strips_of(h)):
            x = run(self.block_in, self.conv_in(cut(z)), cache)
            for block in (*self.up_blocks, self.block_out):
                x = run(block, x, cache)
            x = join(self.proj_out(jax.nn.silu(x)))
        return x[:, self.surplus :] if cache is None or cache.first else x


class MochiVAE(WholeClipVAE):
    """The VAE. Videos to be encoded must be float32.

    Its decoder streams; its encoder does not in constant memory, as it attends to all earlier
    frames, so that clips are not streamed.
    """

    config: MochiConfig
    decoder: Decoder

    def __init__(
        self, config: MochiConfig, *, remat: str = "none", **settings: Unpack[LayerSettings]
    ):
        """Build with random weights; see `VideoVAE`."""
        self.config = config
        self.encoder = Encoder(config, remat=remat, **settings)
        self.decoder = Decoder(config, remat=remat, **settings)

    def decode(
        self, z: Float[Array, "b t h w z"], cache: StreamCache | None = None
    ) -> Float[Array, "b T H W 3"]:
        """See `VideoVAE.decode`; with a cache, of the next chunk of latent frames, exactly."""
        return self.decoder(z, cache)
