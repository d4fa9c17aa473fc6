"""The Wan VAE in whole-clip form: for 4k+1 frames it equals the reference's chunked, cached run."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.decoder import Decoder
from pyratok_jax.models.wan_vae.encoder import Encoder
from pyratok_jax.models.wan_vae.layers import CausalConv3d
from pyratok_jax.models.wan_vae.linear import LinearPath
from pyratok_jax.models.wan_vae.memory import Memory
from pyratok_jax.models.wan_vae.resample import patchify, unpatchify

LOGVAR_RANGE = (-30.0, 20.0)


class Encoded(NamedTuple):
    """Gaussian posterior of a clip, and the encoder's stage features.

    Attributes:
        mean: in the VAE's own scale (not normalised).
        logvar: log-variance, clamped to [-30, 20].
        stages: outputs of the four encoder stages; strides and widths are in the config.
    """

    mean: Float[Array, "b t h w z"]
    logvar: Float[Array, "b t h w z"]
    stages: tuple[Array, ...]


class WanVAE(nnx.Module):
    """Encoder and decoder with the 1x1x1 convolutions around the latent."""

    def __init__(
        self,
        config: WanVAEConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: str = "none",
    ):
        """Build with random weights.

        Args:
            config: sizes.
            rngs: for the parameters.
            dtype: of activations; norms are always computed in float32.
            param_dtype: of the stored weights.
            remat: of `encoder.POLICIES`, see `encoder.rematerialised`.
        """
        settings: dict[str, Any] = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        z = config.z_dim
        self.encoder = Encoder(config, remat=remat, **settings)
        self.decoder = Decoder(config, remat=remat, **settings)
        self.quant_conv = CausalConv3d(2 * z, 2 * z, (1, 1, 1), **settings)
        self.post_quant_conv = CausalConv3d(z, z, (1, 1, 1), **settings)
        self.linear = nnx.data(LinearPath(config, **settings) if config.linear_path else None)

    def encode(self, video: Float[Array, "b t h w 3"]) -> Encoded:
        """Posterior of a clip in [-1, 1].

        Raises:
            ValueError: when t is not 4k+1 or a side is not a multiple of the spatial factor.
        """
        self.check(*video.shape[1:4])
        return self.posterior(video)

    def posterior(self, video: Float[Array, "b t h w 3"], memory: Memory | None = None) -> Encoded:
        """The same without the check; with a memory, one chunk of a clip (see `streaming`)."""
        moments, stages = self.encoder(patchify(video, self.config.patch), memory)
        mean, logvar = jnp.split(self.quant_conv(moments), 2, axis=-1)
        if self.linear is not None:
            mean = mean + self.linear.encode(video, first=memory is None or memory.first)
        return Encoded(mean, jnp.clip(logvar, *LOGVAR_RANGE), stages)

    def decode(
        self, z: Float[Array, "b t h w z"], memory: Memory | None = None
    ) -> Float[Array, "b T H W 3"]:
        """Video of latents in the VAE's own scale: about [-1, 1], not clamped.

        With a memory, one chunk of it (see `streaming`).
        """
        video = unpatchify(self.decoder(self.post_quant_conv(z), memory), self.config.patch)
        if self.linear is None:
            return video
        return video + self.linear.decode(z, memory)

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

    def check(self, t: int, h: int, w: int) -> None:
        """Raise a ValueError when a clip of t x h x w does not suit the VAE."""
        time, space = self.config.temporal_factor, self.config.spatial_factor
        if (t - 1) % time or h % space or w % space:
            raise ValueError(
                f"a clip of {t}x{h}x{w} does not suit the VAE: frames must be {time}k+1, sides "
                f"multiples of {space}; pad it first"
            )
