"""Masking and shuffling of the encoder's input; the training target is always the clean video.

Whole frames are hidden in time, patches are hidden in space. The share of hidden patches follows a
cosine over training: `spatial_ratio` at the first step, 0 at the last, so that training ends on the
inputs that inference sees.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from pyratok_jax.models.settings import MaskingConfig


def spatial_ratio_at(config: MaskingConfig, progress: Float[Array, ""]) -> Float[Array, ""]:
    """Share of hidden patches when `progress` in [0, 1] of training is done (cosine to 0)."""
    progress = config.start + (config.end - config.start) * jnp.clip(progress, 0.0, 1.0)
    return config.spatial_ratio * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))


def frame_mask(
    key: PRNGKeyArray, batch: int, frames: int, ratio: float
) -> Bool[Array, "batch frames"]:
    """True where a frame is hidden: exactly round(ratio * (frames-1)) of them, never frame 0."""
    hidden = round(ratio * (frames - 1))
    order = jnp.argsort(jax.random.uniform(key, (batch, frames - 1)), axis=1)
    rank = jnp.argsort(order, axis=1)
    return jnp.pad(rank < hidden, ((0, 0), (1, 0)))


def patch_mask(
    key: PRNGKeyArray, shape: tuple[int, int, int, int], patch: int, ratio: Float[Array, ""]
) -> Bool[Array, "b t h w"]:
    """True at pixels of hidden patches; each patch is hidden with probability `ratio`."""
    b, t, h, w = shape
    rows, columns = -(-h // patch), -(-w // patch)
    hidden = jax.random.uniform(key, (b, t, rows, columns)) < ratio
    hidden = jnp.repeat(jnp.repeat(hidden, patch, axis=2), patch, axis=3)
    return hidden[:, :, :h, :w]


def mask_video(
    video: Float[Array, "b t h w 3"],
    mask_value: Float[Array, "3"],
    key: PRNGKeyArray,
    progress: Float[Array, ""],
    config: MaskingConfig,
) -> Float[Array, "b t h w 3"]:
    """The encoder's input: frames permuted, hidden ones and patches replaced by `mask_value`.

    Deterministic in `key`; the caller folds (seed, step) into it. Frame 0 is never hidden whole,
    its patches can be.
    """
    b, t, h, w, _ = video.shape
    frame_key, patch_key, shuffle_key = jax.random.split(key, 3)
    frames = frame_mask(frame_key, b, t, config.frame_ratio)
    if config.shuffle_ratio:
        choose_key, order_key = jax.random.split(shuffle_key)
        moved = frame_mask(choose_key, b, t, config.shuffle_ratio)
        video = _shuffle_frames(video, moved, order_key)
    hidden = jnp.broadcast_to(frames[:, :, None, None], (b, t, h, w))
    ratio = spatial_ratio_at(config, progress)
    hidden = hidden | patch_mask(patch_key, (b, t, h, w), config.patch, ratio)
    return jnp.where(hidden[..., None], mask_value.astype(video.dtype), video)


def _shuffle_frames(
    video: Float[Array, "b t h w 3"], hidden: Bool[Array, "b t"], key: PRNGKeyArray
) -> Float[Array, "b t h w 3"]:
    """Permute the chosen frames among their own places; all other frames stay."""
    noise = jax.random.uniform(key, hidden.shape)
    places = jnp.argsort(jnp.where(hidden, 0.0, 1.0), axis=1, stable=True)
    shuffled = jnp.argsort(jnp.where(hidden, noise, 2.0), axis=1, stable=True)
    count = jnp.sum(hidden, axis=1, keepdims=True)
    index = jnp.arange(hidden.shape[1])[None]
    source = jnp.where(index < count, shuffled, places)
    origin = jnp.zeros_like(places).at[jnp.arange(len(places))[:, None], places].set(source)
    return jnp.take_along_axis(video, origin[:, :, None, None, None], axis=1)
