"""The interface of a video VAE, and running one with every device computing its part of a batch.

A family of VAEs is a frozen dataclass that is a `VideoVAEConfig`, a module that is a `VideoVAE`,
and a line in `vae_families`. Tokenizer, training and tools know a VAE by this interface alone.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.models.vae_config import VideoVAEConfig
from pyratok_jax.models.vae_families import vae_family
from pyratok_jax.nn.partitioning import height_parts, per_device
from pyratok_jax.nn.stream_cache import Caches, StreamCache

_LOGVAR_RANGE = (-30.0, 20.0)  # to which the published VAEs clamp log-variances


class Encoded(NamedTuple):
    """Gaussian posterior of a clip, and the encoder's stage features.

    Attributes:
        mean: in the VAE's own scale (not normalised).
        logvar: log-variance.
        stages: outputs of the encoder stages; strides and widths are in the config.
    """

    mean: Float[Array, "b t h w z"]
    logvar: Float[Array, "b t h w z"]
    stages: tuple[Array, ...]

    @classmethod
    def of_moments(
        cls, moments: Float[Array, "b t h w zz"], stages: tuple[Array, ...]
    ) -> "Encoded":
        """Of mean and log-variance side by side; log-variances are clamped to [-30, 20]."""
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return cls(mean, jnp.clip(logvar, *_LOGVAR_RANGE), stages)


class VideoVAE(nnx.Module, abc.ABC):
    """Base class of video VAEs; the constructor takes (config, *, remat, **`LayerSettings`).

    Attributes:
        config: sizes.
        encoder: root of the low-rank adapters. Every layer below it that is to be adapted has a
            `kernel` with last axes (in, out) and a slot `adapter` (see `nn.lora`).
        remat_policies: the values of `remat` that the constructor takes.
    """

    remat_policies: ClassVar[tuple[str, ...]] = ("none",)
    config: VideoVAEConfig
    encoder: nnx.Module

    @abc.abstractmethod
    def posterior(
        self, video: Float[Array, "b t h w 3"], cache: StreamCache | None = None
    ) -> Encoded:
        """Posterior of a clip in [-1, 1], whose size is not checked.

        With a cache (only if `config.streams`), of the next chunk: 1 + a multiple of the frame step
        first, then multiples of it. All chunks together equal the whole clip.
        """

    @abc.abstractmethod
    def decode(
        self, z: Float[Array, "b t h w z"], cache: StreamCache | None = None
    ) -> Float[Array, "b T H W 3"]:
        """Video of latents in the VAE's own scale: about [-1, 1], not clamped.

        With a cache (only if `config.streams`), of the next chunk of latent frames.
        """

    def encode(self, video: Float[Array, "b t h w 3"]) -> Encoded:
        """Posterior of a clip in [-1, 1].

        Raises:
            ValueError: a size that the VAE does not take (`VideoVAEConfig.check_clip`).
        """
        self.check(*video.shape[1:4])
        return self.posterior(video)

    def check(self, t: int, h: int, w: int) -> None:
        """See `VideoVAEConfig.check_clip`."""
        self.config.check_clip(t, h, w)

    def normalize(self, z: Float[Array, "*n z"]) -> Float[Array, "*n z"]:
        """Latents in the published normalised scale: (z - mean) / std."""
        mean, std = self._statistics(z.dtype)
        return (z - mean) / std

    def denormalize(self, z: Float[Array, "*n z"]) -> Float[Array, "*n z"]:
        """Inverse of `normalize`."""
        mean, std = self._statistics(z.dtype)
        return z * std + mean

    def _statistics(self, dtype: DTypeLike) -> tuple[Array, Array]:
        return (
            jnp.asarray(self.config.latents_mean, dtype),
            jnp.asarray(self.config.latents_std, dtype),
        )


def build_vae(
    config: VideoVAEConfig,
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: str = "none",
) -> VideoVAE:
    """A VAE of these sizes with random weights.

    Args:
        config: sizes; their family says which module.
        rngs: for the parameters.
        dtype: of activations.
        param_dtype: of the stored weights.
        remat: rematerialisation policy, one of the module's `remat_policies`.

    Raises:
        ValueError: an unknown family or policy.
    """
    make: Any = vae_family(config.family).vae
    if remat not in make.remat_policies:
        expected = ", ".join(make.remat_policies)
        raise ValueError(f"remat policy {remat!r}: expected one of {expected}")
    return make(config, rngs=rngs, dtype=dtype, param_dtype=param_dtype, remat=remat)


def encode(vae: VideoVAE, video: Float[Array, "b t h w 3"]) -> Encoded:
    """`vae.encode`, every device computing its clips or its rows of each frame.

    Raises:
        ValueError: the clip does not suit the VAE, or its height not the number of devices.
    """
    vae.check(*video.shape[1:4])
    _check(video.shape[2], vae.config.spatial_factor)
    with jax.named_scope("vae_encoder"):
        return per_device(lambda model, x: model.posterior(x), vae, video)


def decode(vae: VideoVAE, z: Float[Array, "b t h w z"]) -> Float[Array, "b T H W 3"]:
    """`vae.decode`, every device computing its part; see `encode`."""
    _check(z.shape[2], 1)
    with jax.named_scope("vae_decoder"):
        return per_device(lambda model, x: model.decode(x), vae, z)


def encode_next(
    vae: VideoVAE, video: Float[Array, "b t h w 3"], caches: Caches | None
) -> tuple[Encoded, Caches]:
    """`encode` for the next frames of a clip, with the caches of the frames before (None: none)."""
    _check(video.shape[2], vae.config.spatial_factor)

    def run(model: VideoVAE, given: tuple[Array, Caches | None]) -> tuple[Encoded, Caches]:
        cache = StreamCache(model, given[1])
        return model.posterior(given[0], cache), cache.caches

    return per_device(run, vae, (video, caches))


def decode_next(
    vae: VideoVAE, z: Float[Array, "b t h w z"], caches: Caches | None
) -> tuple[Float[Array, "b T H W 3"], Caches]:
    """`decode` for the next latents of a clip; see `encode_next`."""
    _check(z.shape[2], 1)

    def run(model: VideoVAE, given: tuple[Array, Caches | None]) -> tuple[Array, Caches]:
        cache = StreamCache(model, given[1])
        return model.decode(given[0], cache), cache.caches

    return per_device(run, vae, (z, caches))


def _check(h: int, factor: int) -> None:
    parts = height_parts()
    if h % (factor * parts):
        raise ValueError(
            f"height {h} does not split over {parts} devices into multiples of {factor} rows; take "
            f"a multiple of {factor * parts}, or give the batch more clips"
        )
