"""Video VAEs over the devices of a mesh: every device runs its clips, or its rows of each frame."""

import jax
from jaxtyping import Array, Float

from pyratok_jax.models.wan_vae.model import Encoded, WanVAE
from pyratok_jax.nn.partitioning import height_parts, per_device
from pyratok_jax.nn.stream_cache import Caches, StreamCache


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


def encode_next(
    vae: WanVAE, video: Float[Array, "b t h w 3"], caches: Caches | None
) -> tuple[Encoded, Caches]:
    """`encode` for the next frames of a clip, with the caches of the frames before (None: none)."""
    _check(video.shape[2], vae.config.spatial_factor)

    def run(model: WanVAE, given: tuple[Array, Caches | None]) -> tuple[Encoded, Caches]:
        cache = StreamCache(model, given[1])
        return model.posterior(given[0], cache), cache.caches

    return per_device(run, vae, (video, caches))


def decode_next(
    vae: WanVAE, z: Float[Array, "b t h w z"], caches: Caches | None
) -> tuple[Float[Array, "b T H W 3"], Caches]:
    """`decode` for the next latents of a clip; see `encode_next`."""
    _check(z.shape[2], 1)

    def run(model: WanVAE, given: tuple[Array, Caches | None]) -> tuple[Array, Caches]:
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
