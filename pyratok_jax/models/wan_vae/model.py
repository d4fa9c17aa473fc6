"""The Wan VAE in whole-clip form: for 4k+1 frames it equals the reference's chunked, cached run."""

from typing import ClassVar, Unpack

from flax import nnx
from jaxtyping import Array, Float

from pyratok_jax.models.video_vae import Encoded, VideoVAE
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.decoder import Decoder
from pyratok_jax.models.wan_vae.encoder import Encoder
from pyratok_jax.models.wan_vae.linear import LinearPath
from pyratok_jax.models.wan_vae.resample import patchify, unpatchify
from pyratok_jax.nn.causal_conv import CausalConv3d, LayerSettings
from pyratok_jax.nn.remat import POLICIES
from pyratok_jax.nn.stream_cache import StreamCache


class WanVAE(VideoVAE):
    """Encoder and decoder with the 1x1x1 convolutions around the latent."""

    remat_policies: ClassVar[tuple[str, ...]] = POLICIES
    config: WanVAEConfig
    encoder: Encoder

    def __init__(
        self, config: WanVAEConfig, *, remat: str = "none", **settings: Unpack[LayerSettings]
    ):
        """Build with random weights; `remat` is of `remat.POLICIES`, see there."""
        self.config = config
        z = config.z_dim
        self.encoder = Encoder(config, remat=remat, **settings)
        self.decoder = Decoder(config, remat=remat, **settings)
        self.quant_conv = CausalConv3d(2 * z, 2 * z, (1, 1, 1), **settings)
        self.post_quant_conv = CausalConv3d(z, z, (1, 1, 1), **settings)
        self.linear = nnx.data(LinearPath(config, **settings) if config.linear_path else None)

    def posterior(
        self, video: Float[Array, "b t h w 3"], cache: StreamCache | None = None
    ) -> Encoded:
        """See `VideoVAE.posterior`; log-variances are clamped to [-30, 20]."""
        moments, stages = self.encoder(patchify(video, self.config.patch), cache)
        encoded = Encoded.of_moments(self.quant_conv(moments), stages)
        if self.linear is None:
            return encoded
        linear = self.linear.encode(video, first=cache is None or cache.first)
        return encoded._replace(mean=encoded.mean + linear)

    def decode(
        self, z: Float[Array, "b t h w z"], cache: StreamCache | None = None
    ) -> Float[Array, "b T H W 3"]:
        """See `VideoVAE.decode`."""
        video = unpatchify(self.decoder(self.post_quant_conv(z), cache), self.config.patch)
        return video if self.linear is None else video + self.linear.decode(z, cache)
