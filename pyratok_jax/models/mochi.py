"""The Mochi VAE (genmo, mochi-1-preview): 6x8x8, 12 latent channels.

A causal encoder with attention over time, and a causal decoder. The past of every convolution is
copies of its first input frame; frames are padded with copies of their edges. Norms take their
statistics over each frame.
"""

import dataclasses
import math
from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pyratok_jax.models.vae_config import VideoVAEConfig, check_multiples, check_statistics
from pyratok_jax.models.vae_parts import ClipEncoder, WholeClipVAE
from pyratok_jax.nn.causal_conv import KEPT, Conv2d, FirstFrameConv3d, LayerSettings
from pyratok_jax.nn.group_norm import GroupNorm
from pyratok_jax.nn.halo import cut, in_strips, join, strips_of
from pyratok_jax.nn.remat import rematerialised
from pyratok_jax.nn.settings import Stride
from pyratok_jax.nn.stream_cache import StreamCache

# Per-channel statistics of the latents, as published with the checkpoint.
_MEAN = (
    -0.06730895953510081, -0.038011381506090416, -0.07477820912866141, -0.05565264470995561,
    0.012767231469026969, -0.04703542746246419, 0.043896967884726704, -0.09346305707025976,
    -0.09918314763016893, -0.008729793427399178, -0.011931556316503654, -0.0321993391887285,
)  # fmt: skip
_STD = (
    0.9263795028493863, 0.9248894543193766, 0.9393059390890617, 0.959253732819592,
    0.8244560132752793, 0.917259975397747, 0.9294154431013696, 1.3720942357788521,
    0.881393668867029, 0.9168315692124348, 0.9185249279345552, 0.9274757570805041,
)  # fmt: skip

HEAD = 32  # channels of a head, and groups of every norm


@dataclasses.dataclass(frozen=True)
class MochiConfig(VideoVAEConfig):
    """Sizes of one VAE; defaults are the published ones.

    Widths must be multiples of 32: of the groups of its norms, and of a head of its attention.

    Attributes:
        encoder_widths: channels before the first downsampling and after each.
        decoder_widths: channels after the last upsampling and before each, in reverse.
        layers: residual blocks at each resolution, the latent's last, counted twice there.
        time_strides: frames that each downsampling joins; sides are halved by each.
        z_dim: latent channels.
        keeps_first_frames: the decoder keeps all frames made of latent 0 up to its end, as
            diffusers does, instead of dropping them after each upsampling, as the original does.
            The same frames remain, with other values.
        latents_mean, latents_std: statistics by which latents are normalised.
    """

    family: ClassVar[str] = "mochi"

    encoder_widths: tuple[int, ...] = (64, 128, 256, 384)
    decoder_widths: tuple[int, ...] = (128, 256, 512, 768)
    layers: tuple[int, ...] = (3, 3, 4, 6, 3)
    time_strides: tuple[int, ...] = (1, 2, 3)
    z_dim: int = 12
    keeps_first_frames: bool = False
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD

    def __post_init__(self) -> None:
        check_statistics(self)
        stages = len(self.time_strides)
        if not len(self.encoder_widths) == len(self.decoder_widths) == stages + 1:
            raise ValueError(f"{stages} time_strides need {stages + 1} widths on each side")
        if len(self.layers) != stages + 2:
            raise ValueError(f"{stages} time_strides need {stages + 2} numbers of layers")
        check_multiples("time_strides", self.time_strides)
        for name, widths in (
            ("encoder_widths", self.encoder_widths), ("decoder_widths", self.decoder_widths)
        ):  # fmt: skip
            check_multiples(name, widths, HEAD)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame after the first."""
        return math.prod(self.time_strides)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** len(self.time_strides)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels after each downsampling's blocks, and of the last blocks of all."""
        return (*self.encoder_widths[1:], self.encoder_widths[-1])

    @property
    def stage_strides(self) -> tuple[Stride, ...]:
        """(time, space) stride in pixels of each of these features."""
        strides = [
            (math.prod(self.time_strides[: i + 1]), 2 ** (i + 1))
            for i in range(len(self.time_strides))
        ]
        return (*strides, strides[-1])


MOCHI = MochiConfig()


def tiny(width: int = 32, **changes) -> MochiConfig:
    """A small 6x8x8 instance with one residual block per stage and unit statistics."""
    z = changes.get("z_dim", 4)
    values = {
        "encoder_widths": (width, width, width, 2 * width), "z_dim": z,
        "decoder_widths": (width, width, width, 2 * width), "layers": (1, 1, 1, 1, 1),
        "latents_mean": (0.0,) * z, "latents_std": (1.0,) * z,
    }  # fmt: skip
    return MochiConfig(**(values | changes))


FREQUENCIES = (6, 7)  # of the Fourier features: sin and cos of 2 pi 2^k x
SCORES = 2**27  # attention scores that are held at once; beyond, rows of frames follow each other
_TINY = 1e-12


def fourier_features(video: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
    """Pixels with the sines and cosines of each at two frequencies, in float32.

    Channels are the pixels, then the sines (both frequencies of a colour adjacent), then the
    cosines. A narrower dtype would lose the phase, which reaches 2^7 turns.
    """
    x = video.astype(jnp.promote_types(video.dtype, jnp.float32))
    turns = 2 * jnp.pi * jnp.array([2.0**k for k in FREQUENCIES], x.dtype)
    phases = (x[..., None] * turns).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([x, jnp.sin(phases), jnp.cos(phases)], axis=-1)


def frame_norm(features: int, **settings) -> GroupNorm:
    """Group norm over each frame, 32 groups."""
    param_dtype = settings.get("param_dtype", jnp.float32)
    return GroupNorm(features, 32, epsilon=1e-5, per_frame=True, param_dtype=param_dtype)


class ResidualBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input."""

    def __init__(self, features: int, **settings):
        self.norm1, self.norm2 = (frame_norm(features, **settings) for _ in range(2))
        self.conv1, self.conv2 = (
            FirstFrameConv3d(features, features, edges="replicate", **settings) for _ in range(2)
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        y = checkpoint_name(self.conv1(self.norm1(x, activate=True), cache), KEPT)
        return checkpoint_name(x + self.conv2(self.norm2(y, activate=True), cache), KEPT)


class TimeAttention(nnx.Module):
    """Every position over time, causally: a frame sees itself and earlier ones.

    Queries and keys are of unit length; heads have 32 channels.
    """

    def __init__(self, features: int, **settings):
        self.to_q, self.to_k, self.to_v = (
            Conv2d(features, features, (1, 1), use_bias=False, **settings) for _ in range(3)
        )
        self.to_out = nnx.List([Conv2d(features, features, (1, 1), **settings)])

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        b, t, h, w, c = x.shape

        def heads(y: Array) -> Array:
            return y.reshape(b, t, h, w, c // HEAD, HEAD)

        q, k = (_unit(heads(layer(x))) for layer in (self.to_q, self.to_k))
        v = heads(self.to_v(x))
        if b * h * w * t * t * (c // HEAD) <= SCORES:
            y = _attend(q, k, v)
        else:
            rows = tuple(jnp.moveaxis(each, 2, 0) for each in (q, k, v))
            one_row = jax.checkpoint(lambda row: _attend(*(each[:, :, None] for each in row)))
            y = jnp.moveaxis(lax.map(one_row, rows)[:, :, :, 0], 0, 2)
        return self.to_out[0](y.reshape(b, t, h, w, c))


def _unit(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squares = jnp.sum(y * y, axis=-1, keepdims=True)
    return (y * lax.rsqrt(jnp.maximum(squares, _TINY**2))).astype(x.dtype)


def _attend(
    q: Float[Array, "b t h w n d"], k: Float[Array, "b t h w n d"], v: Float[Array, "b t h w n d"]
) -> Float[Array, "b t h w n d"]:
    b, t, h, w, n, d = q.shape
    query, key, value = (jnp.moveaxis(x, 1, 3).reshape(b * h * w, t, n, d) for x in (q, k, v))
    y = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    return jnp.moveaxis(y.reshape(b, h, w, t, n, d), 3, 1)


class Blocks(nnx.Module):
    """Residual blocks, each followed by attention over time where `attends`."""

    def __init__(self, features: int, layers: int, *, attends: bool, **settings):
        count = layers if attends else 0
        self.resnets = nnx.List([ResidualBlock(features, **settings) for _ in range(layers)])
        self.norms = nnx.List([frame_norm(features, **settings) for _ in range(count)])
        self.attentions = nnx.List([TimeAttention(features, **settings) for _ in range(count)])

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t h w c"]:
        """Same shape out."""
        for index, block in enumerate(self.resnets):
            x = block(x, cache)
            if self.attentions:
                x = x + self.attentions[index](self.norms[index](x))
        return x


class DownBlock(Blocks):
    """A convolution that joins pixels and frames, then blocks with attention."""

    def __init__(self, before: int, after: int, layers: int, time: int, **settings):
        super().__init__(after, layers, attends=True, **settings)
        window = (time, 2, 2)
        self.conv_in = FirstFrameConv3d(before, after, window, strides=window, **settings)

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """1 + time n frames become 1 + n."""
        return super().__call__(self.conv_in(x))


class UpBlock(Blocks):
    """Blocks, then a linear map whose channels are unfolded into frames and pixels."""

    def __init__(
        self, before: int, after: int, layers: int, time: int, *, keeps_first: bool, **settings
    ):
        super().__init__(before, layers, attends=False, **settings)
        self.proj = Conv2d(before, after * time * 4, (1, 1), **settings)
        self.time, self.keeps_first = time, keeps_first

    def __call__(
        self, x: Float[Array, "b t h w c"], cache: StreamCache | None = None
    ) -> Float[Array, "b t2 h2 w2 d"]:
        """n frames become time n, of which the first time - 1 of a clip are dropped."""
        y = self.proj(super().__call__(x, cache))
        b, t, h, w, c = y.shape
        # Channels are ordered (channel, frame, row, column).
        y = y.reshape(b, t, h, w, c // (self.time * 4), self.time, 2, 2)
        y = y.transpose(0, 1, 5, 2, 6, 3, 7, 4)
        y = y.reshape(b, t * self.time, 2 * h, 2 * w, c // (self.time * 4))
        drops = not self.keeps_first and (cache is None or cache.first)
        return y[:, self.time - 1 :] if drops else y


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
