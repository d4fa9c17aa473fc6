"""Video VAEs over the devices of a mesh: every device runs its clips, or its rows of each frame."""

import jax
from jaxtyping import Array, Float

from pyratok_jax.models.wan_vae.model import Encoded, WanVAE
from pyratok_jax.nn.partitioning import height_parts, per_device


def encode(vae: WanVAE, video: Float[Array, "b t h w 3"]) -> Encoded:
    """`vae.encode`, every device doing its part.

    Raises:
        ValueError: the clip does not suit the VAE, or its height not the number of devices.
    """
    vae.check(*video.shape[1:4])
    _check(video.shape[2], vae.config.spatial_factor)
    with jax.named_scope("vae_encoder"):
        return per_device(lambda model, x: model.posterior(x), vae, video)


def decode(vae: WanVAE, z: Float[Array, "b t h w z"]) -> Float[Array, "b T H W 3"]:
    """`vae.decode`, every device doing its part; see `encode`."""
    _check(z.shape[2], 1)
    with jax.named_scope("vae_decoder"):
        return per_device(lambda model, x: model.decode(x), vae, z)


def _check(h: int, factor: int) -> None:
    parts = height_parts()
    if h % (factor * parts):
        raise ValueError(
            f"height {h} does not split over {parts} devices into multiples of {factor} rows; take "
            f"a multiple of {factor * parts}, or give the batch more clips"
        )
