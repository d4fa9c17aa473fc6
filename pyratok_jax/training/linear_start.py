"""The start of a small VAE as a linear code: principal components of blocks of training pixels."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.training.partition import Partition

# Log-variance of the posterior at the start: little noise on latents of unit variance.
LOGVAR = -7.0


class Components(NamedTuple):
    """The mean of blocks and their leading principal components, with their standard deviations."""

    mean: Float[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n k"]
    deviations: Float[np.ndarray, " k"]


def principal_components(
    videos: Iterable[Float[np.ndarray, "b t h w 3"]], count: int, time: int, space: int
) -> Components:
    """Of the blocks of (time, space, space) pixels that lie side by side in `videos`.

    Pixels of a block are ordered (frame, row, column, colour). Sides must be multiples of `space`
    and frames of `time`.
    """
    n, total, products = 0, 0.0, 0.0
    for video in videos:
        b, t, h, w, c = video.shape
        x = video.reshape(b, t // time, time, h // space, space, w // space, space, c)
        x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, time * space * space * c)
        x = x.astype(np.float64)
        n, total, products = n + len(x), total + x.sum(axis=0), products + x.T @ x
    mean = np.asarray(total) / n
    values, vectors = np.linalg.eigh(np.asarray(products) / n - np.outer(mean, mean))
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    return Components(mean, vectors, np.sqrt(np.maximum(values, 1e-12)))


def start_linear(
    partition: Partition, sizes: WanVAEConfig, videos: list[Float[np.ndarray, "b t h w 3"]]
) -> None:
    """Make the VAE, trained as `vae`, start as the linear code; its network adds nothing yet.

    Latents are the components at unit variance. Without a linear path nothing is done.

    Args:
        partition: whose arrays are changed; those of the linear path are frozen ones.
        sizes: of the VAE.
        videos: clips in [-1, 1] of 1 + n frames, n a multiple of the temporal factor.
    """
    if not sizes.linear_path:
        return
    arrays, z = partition.frozen, sizes.z_dim
    for name, time in (("first", 1), ("later", sizes.temporal_factor)):
        parts = [x[:, :1] if name == "first" else x[:, 1:] for x in videos]
        found = principal_components(parts, z, time, sizes.spatial_factor)
        into = found.vectors / found.deviations
        _put(arrays, f"vae.linear.{name}_in", into)
        _put(arrays, f"vae.linear.{name}_in_bias", -found.mean @ into)
        _put(arrays, f"vae.linear.{name}_out", (found.vectors * found.deviations).T)
        _put(arrays, f"vae.linear.{name}_out_bias", found.mean)
    arrays = partition.trainable
    for part in ("encoder", "decoder"):
        name = f"vae.{part}.conv_out.kernel"
        _put(arrays, name, np.zeros(arrays[name].shape))
    bias = np.concatenate([np.zeros(z), np.full(z, LOGVAR)])
    _put(arrays, "vae.quant_conv.bias", bias)


def _put(arrays: dict[str, Array], name: str, value: np.ndarray) -> None:
    import jax.numpy as jnp

    assert arrays[name].shape == value.shape
    arrays[name] = jnp.asarray(value, arrays[name].dtype)
