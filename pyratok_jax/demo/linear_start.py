"""The start of a small VAE as a linear code: principal components of blocks of training pixels."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.linear import to_blocks
from pyratok_jax.models.wan_vae.model import WanVAE

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
    """Of the adjacent blocks of (time, space, space) pixels of `videos`.

    Pixels of a block are ordered (frame, row, column, colour). Sides must be multiples of `space`
    and frames of `time`.
    """
    n, total, products = 0, np.zeros(()), np.zeros(())
    for video in videos:
        x = np.asarray(to_blocks(video, time, space))
        x = x.reshape(-1, x.shape[-1])
        n, total, products = n + len(x), total + x.sum(axis=0, dtype=np.float64), products + x.T @ x
    mean = np.asarray(total) / n
    values, vectors = np.linalg.eigh(np.asarray(products) / n - np.outer(mean, mean))
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    return Components(mean, vectors, np.sqrt(np.maximum(values, 1e-12)))


def fit_linear(
    sizes: WanVAEConfig, videos: list[Float[np.ndarray, "b t h w 3"]]
) -> dict[str, np.ndarray]:
    """The weights of a linear path.

    Latents are principal components of unit variance; blocks are decoded from the latents around
    and before them by (ridge) least squares.

    Args:
        sizes: of the VAE.
        videos: clips in [-1, 1] of 1 + n frames, n a multiple of the temporal factor.

    Returns:
        float32 arrays by the names that `linear.LinearPath` has for them.
    """
    arrays: dict[str, np.ndarray] = {}
    time, space, z = sizes.temporal_factor, sizes.spatial_factor, sizes.z_dim
    first = principal_components([x[:, :1] for x in videos], z, 1, space)
    later = principal_components([x[:, 1:] for x in videos], z, time, space)
    for name, found in (("first", first), ("later", later)):
        arrays[f"{name}_in"] = found.vectors / found.deviations
        arrays[f"{name}_in_bias"] = -found.mean @ arrays[f"{name}_in"]
        arrays[f"{name}_out.bias"] = found.mean
    squares: dict[str, Any] = {"first": 0.0, "later": 0.0}
    products: dict[str, Any] = {"first": 0.0, "later": 0.0}
    for video in videos:
        blocks = {
            "first": to_blocks(video[:, :1], 1, space),
            "later": to_blocks(video[:, 1:], time, space),
        }
        latents = [x @ arrays[f"{n}_in"] + arrays[f"{n}_in_bias"] for n, x in blocks.items()]
        seen = _neighbours(np.concatenate(latents, axis=1).astype(np.float32))
        inputs = {"first": seen[:, :1], "later": np.concatenate([seen[:, :-1], seen[:, 1:]], -1)}
        for name, x in inputs.items():
            x, wanted = x.reshape(-1, x.shape[-1]), blocks[name] - arrays[f"{name}_out.bias"]
            squares[name] = squares[name] + x.T @ x
            products[name] = products[name] + x.T @ wanted.reshape(len(x), -1).astype(np.float32)
    for name, window in (("first", (1, 3, 3)), ("later", (2, 3, 3))):
        ridge = 1e-4 * np.trace(squares[name]) / len(squares[name])
        kernel = np.linalg.solve(squares[name] + ridge * np.eye(len(squares[name])), products[name])
        arrays[f"{name}_out.kernel"] = kernel.reshape(*window, z, -1)
    return {name: np.asarray(value, np.float32) for name, value in arrays.items()}


def _neighbours(z: Float[np.ndarray, "b t h w z"]) -> Float[np.ndarray, "b t h w c"]:
    """The 3x3 latents around each, zeros beyond the border, ordered (row, column, channel)."""
    h, w = z.shape[2:4]
    z = np.pad(z, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [z[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return np.concatenate(shifts, axis=-1)


def start_with_nothing(vae: WanVAE) -> None:
    """Let the network add nothing to the linear path yet; the posterior has little noise."""
    for part in (vae.encoder, vae.decoder):
        part.conv_out.kernel.set_value(jnp.zeros_like(part.conv_out.kernel[...]))
    z = vae.config.z_dim
    bias = jnp.concatenate([jnp.zeros(z), jnp.full(z, LOGVAR)])
    vae.quant_conv.bias.set_value(bias.astype(vae.quant_conv.bias.dtype))
