"""Whole clips through the interface for chunks."""

import jax
import jax.numpy as jnp
import numpy as np

from pyratok_jax.models import video_vae
from pyratok_jax.models.video_vae import Encoded
from pyratok_jax.models.wan_vae.model import WanVAE


def encode_in_chunks(vae: WanVAE, video: jax.Array, *lengths: int) -> Encoded:
    """`vae.encode` with carried caches; without `lengths`, of one latent frame each."""
    later = (video.shape[1] - 1) // vae.config.temporal_factor
    parts, caches = [], None
    for chunk in _chunks(video, lengths or (1, *[vae.config.temporal_factor] * later)):
        encoded, caches = video_vae.encode_next(vae, chunk, caches)
        parts.append(encoded)
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)


def decode_in_chunks(vae: WanVAE, z: jax.Array, *lengths: int) -> jax.Array:
    """`vae.decode` with carried caches; without `lengths`, one latent frame at a time."""
    parts, caches = [], None
    for chunk in _chunks(z, lengths or (1,) * z.shape[1]):
        decoded, caches = video_vae.decode_next(vae, chunk, caches)
        parts.append(decoded)
    return jnp.concatenate(parts, axis=1)


def _chunks(x: jax.Array, lengths: tuple[int, ...]) -> list[jax.Array]:
    ends = np.cumsum(lengths)
    assert ends[-1] == x.shape[1], (lengths, x.shape)
    return jnp.split(x, ends[:-1], axis=1)
