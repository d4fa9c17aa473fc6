"""The Wan VAE over videos of any length, in chunks with carried caches.

A clip of 4k+1 frames is frame 0 alone and then chunks of 4 frames (latent 0, then one latent each);
what comes out equals the whole-clip result. `stream_encode` and `stream_decode` are one compiled
`lax.scan` over an array that is at hand; `encode_segments` and `decode_segments` walk a video that
is read and written piece by piece, so that memory does not grow with its length.
"""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from pyratok_jax.models.video_vae import Encoded
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.nn.stream_cache import Caches, StreamCache


def encode_chunk(
    vae: WanVAE, video: Float[Array, "b t h w 3"], caches: Caches | None = None
) -> tuple[Encoded, Caches]:
    """Encode the next frames of a clip: 4k+1 at its start (no caches), then multiples of 4."""
    cache = StreamCache(vae, caches)
    encoded = vae.posterior(video, cache)
    return encoded, cache.caches


def decode_chunk(
    vae: WanVAE, z: Float[Array, "b t h w z"], caches: Caches | None = None
) -> tuple[Float[Array, "b T H W 3"], Caches]:
    """Decode the next latents of a clip: t become 4t frames, 4t-3 at its start (no caches)."""
    cache = StreamCache(vae, caches)
    video = vae.decode(z, cache)
    return video, cache.caches


def stream_encode(vae: WanVAE, video: Float[Array, "b t h w 3"], *, stages: bool = True) -> Encoded:
    """`vae.encode` as one scan over chunks of one latent.

    Args:
        vae: the model.
        video: values in [-1, 1]; t = 4k+1.
        stages: False leaves the stage features out, which are most of the result's size.

    Raises:
        ValueError: when t is not 4k+1 or a side is not a multiple of the spatial factor.
    """
    vae.check(*video.shape[1:4])

    def chunk(frames: Array, caches: Caches | None) -> tuple[Encoded, Caches]:
        encoded, caches = encode_chunk(vae, frames, caches)
        return (encoded if stages else encoded._replace(stages=())), caches

    return _scan(chunk, video, vae.config.temporal_factor)


def stream_decode(vae: WanVAE, z: Float[Array, "b t h w z"]) -> Float[Array, "b T H W 3"]:
    """`vae.decode` as one scan over latents."""
    return _scan(lambda latent, caches: decode_chunk(vae, latent, caches), z, 1)


def _scan(chunk, x: Array, size: int):
    """Run `chunk` on frame 0 and then on `size` frames at a time, and join what it returns."""
    first, caches = chunk(x[:, :1], None)
    rest = x[:, 1:]
    if not rest.shape[1]:
        return first
    # (b, n * size, ...) -> (n, b, size, ...): scan walks the leading axis.
    parts = jnp.moveaxis(rest.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)

    def step(caches: Caches, part: Array):
        result, caches = chunk(part, caches)
        return caches, result

    _, later = lax.scan(step, caches, parts)

    def join(start: Array, stacked: Array) -> Array:
        moved = jnp.moveaxis(stacked, 0, 1)
        merged = moved.reshape(moved.shape[0], -1, *moved.shape[3:])
        return jnp.concatenate([start, merged], axis=1)

    return jax.tree.map(join, first, later)


@nnx.jit(static_argnames="stages")
def _encode_first(vae: WanVAE, video: Array, *, stages: bool):
    encoded, caches = encode_chunk(vae, video)
    return (encoded if stages else encoded._replace(stages=())), caches


@nnx.jit(static_argnames="stages")
def _encode_next(vae: WanVAE, video: Array, caches: Caches, *, stages: bool):
    encoded, caches = encode_chunk(vae, video, caches)
    return (encoded if stages else encoded._replace(stages=())), caches


@nnx.jit
def _decode_first(vae: WanVAE, z: Array):
    return decode_chunk(vae, z)


@nnx.jit
def _decode_next(vae: WanVAE, z: Array, caches: Caches):
    return decode_chunk(vae, z, caches)


def encode_segments(
    vae: WanVAE, segments: Iterable[Float[Array, "b _t h w 3"]], *, stages: bool = False
) -> Iterator[Encoded]:
    """Encode a video that comes in segments; yields each one's part of the posterior.

    The first segment has 4k+1 frames, all others a multiple of 4; every different length is
    compiled once. Only the caches are kept from one segment to the next.
    """
    caches = None
    for segment in segments:
        if caches is None:
            encoded, caches = _encode_first(vae, segment, stages=stages)
        else:
            encoded, caches = _encode_next(vae, segment, caches, stages=stages)
        yield encoded


def decode_segments(
    vae: WanVAE, segments: Iterable[Float[Array, "b _t h w z"]]
) -> Iterator[Float[Array, "b _T H W 3"]]:
    """Decode latents that come in segments of any lengths; yields the frames of each."""
    caches = None
    for segment in segments:
        if caches is None:
            video, caches = _decode_first(vae, segment)
        else:
            video, caches = _decode_next(vae, segment, caches)
        yield video
