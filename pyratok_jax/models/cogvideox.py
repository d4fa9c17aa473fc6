"""The CogVideoX video VAE (arXiv 2408.06072): 4x8x8, 16 latent channels.

The past of every convolution is copies of its first input frame; frames are padded with zeros. The
decoder is defined in parts of two latent frames.
"""

import dataclasses
from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pyratok_jax.models.vae_parts import (
    ClipEncoder,
    ResidualStage,
    TimeHalvingVAEConfig,
    WholeClipVAE,
)
from pyratok_jax.nn.causal_conv import KEPT, Conv2d, FirstFrameConv3d, LayerSettings
from pyratok_jax.nn.group_norm import GroupNorm
from pyratok_jax.nn.halo import cut, in_strips, join, strips_of
from pyratok_jax.nn.remat import rematerialised
from pyratok_jax.nn.settings import Stride
from pyratok_jax.nn.stream_cache import StreamCache, in_parts


@dataclasses.dataclass(frozen=True)
class CogVideoXConfig(TimeHalvingVAEConfig):
    """Sizes of one VAE; defaults are those of CogVideoX-2b. The first `time_levels` halve time.

    Attributes:
        encode_frames: frames over which the encoder's norms take their statistics: 0, the whole
            clip, as the diffusion models were trained; or 8, parts of 8 frames (the first one
            longer by the remainder) with constant memory, as diffusers encodes.
    """

    family: ClassVar[str] = "cogvideox"

    widths: tuple[int, ...] = (128, 256, 256, 512)
    layers: int = 3
    latents_std: tuple[float, ...] = (1 / 1.15258426,) * 16
    encode_frames: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encode_frames < 0 or self.encode_frames % self.temporal_factor:
            raise ValueError(
                f"encode_frames {self.encode_frames} is not a multiple of {self.temporal_factor}"
            )

    @property
    def stage_strides(self) -> tuple[Stride, ...]:
        """(time, space) stride of each stage's output, which is taken before time is halved."""
        last = len(self.widths) - 1
        return tuple(
            (2 ** min(i, self.time_levels), 2 ** min(i + 1, last)) for i in range(last + 1)
        )


COGVIDEOX_2B = CogVideoXConfig()
COGVIDEOX_5B = CogVideoXConfig(latents_std=(1 / 0.7,) * 16)  # and 1.5


def tiny(width: int = 8, **changes) -> CogVideoXConfig:
    """A small 4x8x8 instance with one residual block per stage and unit statistics."""
    return CogVideoXConfig.small(
        (width, 2 * width, 2 * width, 4 * width), **({"groups": 4} | changes)
    )


def is_first(cache: StreamCache | None) -> bool:
    """Whether frames start with frame 0 of the clip."""
    return cache is None or cache.first


def repeat_later(
    x: Float[Array, "b t h w c"], times: int, *, first: bool
) -> Float[Array, "b t2 h w c"]:
    """Every frame `times` times, but frame 0, which `x` starts with if `first`, once."""
    if times == 1:
        return x
    if not first:
        return jnp.repeat(x, times, axis=1)
    return jnp.concatenate([x[:, :1], jnp.repeat(x[:, 1:], times, axis=1)], axis=1)


def average_pairs(x: Float[Array, "b t h w c"], *, first: bool) -> Float[Array, "b t2 h w c"]:
    """Means of pairs of frames, frame 0 apart if `first`: 1 + 2n frames become 1 + n."""
    start = x[:, : int(first)]
    b, t, *rest = x[:, int(first) :].shape
    pairs = x[:, int(first) :].reshape(b, t // 2, 2, *rest)
    return jnp.concatenate([start, jnp.mean(pairs, axis=2)], axis=1)


class SpatialNorm(nnx.Module):
    """Group norm whose scale and bias are linear in the latent (arXiv 2209.09002)."""

    def __init__(self, features: int, latent: int, groups: int, **settings):
        norm = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        self.norm_layer = GroupNorm(features, groups, **norm)
        self.conv_y = FirstFrameConv3d(latent, features, (1, 1, 1), **settings)
        self.conv_b = FirstFrameConv3d(latent, features, (1, 1, 1), **settings)

    def __call__(
        self, x: Float[Array, "b t h w c"], z: Float[Array, "b t2 h2 w2 z"], *, first: bool
    ) -> Float[Array, "b t h w c"]:
        """SiLU of the normalised `x`, conditioned on the nearest latent of each position."""
        # At the latent's size and then repeated: the same values for a fraction of the work.
        scale, bias = (self._nearest(layer(z), x, first) for layer in (self.conv_y, self.conv_b))
        return jax.nn.silu(self.norm_layer(x) * scale + bias)

    @staticmethod
    def _nearest(y: Array, x: Array, first: bool) -> Array:
        if y.shape[1] > int(first):
            y = repeat_later(y, (x.shape[1] - first) // (y.shape[1] - first), first=first)
        y = jnp.repeat(y, x.shape[2] // y.shape[2], axis=2)
        return jnp.repeat(y, x.shape[3] // y.shape[3], axis=3)


class ResidualBlock(nnx.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus a 1x1x1 shortcut where the width changes.

    With `latent` channels its norms are conditioned on a latent (decoder).
    """

    def __init__(self, before: int, after: int, groups: int, latent: int = 0, **settings):
        param = {"param_dtype": settings.get("param_dtype", jnp.float32)}
        self.norm1: SpatialNorm | GroupNorm
        self.norm2: SpatialNorm | GroupNorm
        if latent:
            self.norm1 = SpatialNorm(before, latent, groups, **settings)
            self.norm2 = SpatialNorm(after, latent, groups, **settings)
        else:
            self.norm1 = GroupNorm(before, groups, **param)
            self.norm2 = GroupNorm(after, groups, **param)
        self.conv1 = FirstFrameConv3d(before, after, **settings)
        self.conv2 = FirstFrameConv3d(after, after, **settings)
        self.conv_shortcut = (
            FirstFrameConv3d(before, after, (1, 1, 1), **settings) if before != after else None
        )

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        cache: StreamCache | None = None,
        z: Float[Array, "b t2 h2 w2 z"] | None = None,
    ) -> Float[Array, "b t h w d"]:
        """The block's output; the shortcut reads the un-normalised input."""
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        x = checkpoint_name(self.conv1(self._norm(self.norm1, x, z, cache), cache), KEPT)
        x = self.conv2(self._norm(self.norm2, x, z, cache), cache)
        return checkpoint_name(x + shortcut, KEPT)

    @staticmethod
    def _norm(
        norm: SpatialNorm | GroupNorm, x: Array, z: Array | None, cache: StreamCache | None
    ) -> Array:
        if isinstance(norm, GroupNorm):
            return norm(x, activate=True)
        assert z is not None
        return norm(x, z, first=is_first(cache))


class Downsample(nnx.Module):
    """A 3x3 convolution with stride 2 of every frame; the caller halves time afterwards.

    The published order is time first. Both are linear, so that the order does not matter, and
    between them every frame has its feature at half the size.
    """

    def __init__(self, features: int, **settings):
        self.conv = Conv2d(features, features, (3, 3), **settings)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c"]:
        """Frames at half the size."""
        return self.conv(x, padding=(0, 1), stride=2)


class Upsample(nnx.Module):
    """Nearest neighbour in time (maybe) and space, then a 3x3 convolution of every frame."""

    def __init__(self, features: int, *, doubles_time: bool, **settings):
        self.conv = Conv2d(features, features, (3, 3), **settings)
        self.doubles_time = doubles_time

    def __call__(
        self, x: Float[Array, "b t h w c"], *, first: bool
    ) -> Float[Array, "b t2 h2 w2 c"]:
        """1 + n frames become 1 + 2n where time is doubled and `x` starts with frame 0."""
        # Frames are convolved before they are repeated: each is computed once.
        return repeat_later(self.conv.after_upsampling(x), 1 + self.doubles_time, first=first)


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
    having three where the number is odd; only the first part treats frame 0 separately.
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
