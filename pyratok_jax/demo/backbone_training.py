"""The small VAE's own training: pixels, colour, LPIPS, KL on short clips (the demo's backbone).

It starts as a linear code: principal components of blocks of training pixels.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import Partition, module_arrays
from pyratok_jax.checkpoints.pretrained import read_weights, write_weights
from pyratok_jax.checkpoints.working_folder import read_parameters
from pyratok_jax.demo.clips import PhasedTask
from pyratok_jax.errors import UserError
from pyratok_jax.io import Json
from pyratok_jax.io.atomic import write_npz
from pyratok_jax.io.documents import read_json, read_npz, refusing
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.models import video_vae
from pyratok_jax.models.vae_families import config_to_dict
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.linear import to_blocks
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.nn import partitioning
from pyratok_jax.tokenizer import to_model_range
from pyratok_jax.training.loop.loop import train

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


LINEAR = "linear.npz"  # of a working folder: what its linear path was fitted to be


class BackboneSystem(nnx.Module):
    """The VAE in training, and the frozen network that LPIPS is measured with."""

    def __init__(self, config: ConfigDict, lpips: nnx.Module | None):
        sizes = WanVAEConfig.from_dict(config.model.to_dict())
        self.vae = WanVAE(sizes, rngs=nnx.Rngs(config.seed), remat=config.remat)
        self.lpips = nnx.data(lpips)


class BackboneTask(PhasedTask):
    """What `train` needs to know of the VAE's training."""

    def __init__(self, config: ConfigDict):
        self.config = config
        lpips = None
        if config.loss.lpips:
            from pyratok_jax.checkpoints.foreign.lpips import load_lpips

            lpips = load_lpips("vgg")
        self.system = BackboneSystem(config, lpips)

    def is_trainable(self, name: str, variable: nnx.Variable) -> bool:
        """The whole VAE but its linear path, which stays as it was fitted."""
        return name.startswith("vae.") and not name.startswith("vae.linear.")

    def prepare(self, workdir: AnyPath) -> None:
        """The weights before the first step, and at every start those of the linear path.

        The linear path is fitted once, to batches of the first phase of clips, and kept in
        `workdir`. With `config.init_from` all comes from that weights file.

        Raises:
            UserError: `config.init_from` is no weights file of this model, or no phase has clips.
        """
        vae, kept = self.system.vae, workdir / LINEAR
        if self.config.init_from:
            put_weights(vae, Path(self.config.init_from))
        elif vae.linear is not None:
            start_with_nothing(vae)
            if not kept.is_file():
                _keep(kept, fit_linear(vae.config, self._clips()))
        if vae.linear is not None and not kept.is_file():
            _keep(kept, module_arrays(vae.linear))
        elif vae.linear is not None:
            advice = "remove it, so that it is fitted again"
            with refusing(str(kept), advice):
                put_arrays(vae.linear, read_npz(kept, advice=advice))

    def _clips(self) -> list[Float[np.ndarray, "b t h w 3"]]:
        loader = self.clips()
        before = [phase.steps for phase in loader.phases if phase.frames == 1]
        if len(before) == len(loader.phases):
            raise UserError("data.phases has single frames only; a linear path needs clips")
        # Phases of single frames come first. Colours stay as they are: of changed ones the
        # components keep more, and of the pictures themselves less.
        loader.augment = {}
        loader.set_state({"step": sum(before)})
        batches = [next(loader)["video"] for _ in range(self.config.data.linear_batches)]
        return [batch.astype(np.float32) / 127.5 - 1 for batch in batches]

    def loss(
        self,
        system: BackboneSystem,
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        progress: Float[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Weighted sum of L1, MSE, RMSE of each clip and of its colour, KL and LPIPS.

        KL is to a unit Gaussian; LPIPS is of some frames of clips only.

        Single frames come in large batches for few steps of the whole, and LPIPS's network costs
        more than the VAE itself there.
        """
        weights = self.config.loss
        noise_key, pick_key = jax.random.split(key)
        video = to_model_range(batch["video"])
        posterior = video_vae.encode(system.vae, video)
        noise = jax.random.normal(noise_key, posterior.mean.shape)
        z = posterior.mean + jnp.exp(0.5 * posterior.logvar) * noise
        output = video_vae.decode(system.vae, z)
        variance = jnp.exp(posterior.logvar)
        kl = 0.5 * jnp.mean(posterior.mean**2 + variance - 1.0 - posterior.logvar)
        terms = {
            "l1": jnp.mean(jnp.abs(output - video)),
            "kl": kl,
            "psnr": -10 * jnp.log10(jnp.mean(jnp.square(jnp.clip(output, -1, 1) - video)) / 4),
        }
        terms["rmse"] = clip_rmse(output, video)
        terms["chroma"] = clip_rmse(chroma(output), chroma(video))
        kl_weight = weights.kl_clips if video.shape[1] > 1 else weights.kl_frames
        total = kl_weight * kl + weights.mse * jnp.mean(jnp.square(output - video))
        for name in ("l1", "rmse", "chroma"):
            total = total + weights[name] * terms[name]
        frames = min(weights.lpips_frames, video.shape[0] * video.shape[1])
        if weights.lpips and video.shape[1] > 1 and frames:
            pick = jax.random.permutation(pick_key, video.shape[0] * video.shape[1])[:frames]
            a, b = (x.reshape(-1, *x.shape[2:])[pick] for x in (output, video))
            assert system.lpips is not None
            terms["lpips"] = jnp.mean(partitioning.with_replicated_kernels(system.lpips)(a, b))
            total = total + weights.lpips * terms["lpips"]
        return total, terms


def _keep(path: Path, arrays: Mapping[str, jax.Array | np.ndarray]) -> None:
    plain: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
    write_npz(path, **plain)


def clip_rmse(a: Float[Array, "b t h w c"], b: Float[Array, "b t h w c"]) -> Float[Array, ""]:
    """Root mean squared difference of each clip, averaged: easy clips count as hard ones do."""
    squares = jnp.mean(jnp.square(a - b), axis=(1, 2, 3, 4))
    return jnp.mean(jnp.sqrt(squares + 1e-6))


def chroma(video: Float[Array, "*n 3"]) -> Float[Array, "*n 2"]:
    """Cb and Cr of RGB by ITU-R BT.601, full range, in the scale of the input."""
    matrix = jnp.array(
        [[-0.168736, 0.5], [-0.331264, -0.418688], [0.5, -0.081312]], dtype=video.dtype
    )
    return video @ matrix


def run(config: ConfigDict, workdir: AnyPath) -> dict[str, AnyPath] | None:
    """Train the VAE and write its averaged weights; None when interrupted (and saved).

    Raises:
        UserError: whatever the user can mend.
    """
    task = BackboneTask(config)
    task.prepare(workdir)
    trained = train(config, workdir, task)
    if not trained.finished:
        return None
    weights = trained.state.ema or trained.state.params
    system = trained.partition.merge(weights, trained.frozen)
    return {"checkpoint": workdir / "checkpoints", **export(task, system, workdir)}


def put_weights(vae: WanVAE, path: Path) -> None:
    """Take the weights of a safetensors file that `export` wrote.

    Raises:
        UserError: it is not there, or of another model.
    """
    if not path.is_file():
        raise UserError(f"config.init_from {path} is no file; name a .safetensors of this model")
    try:
        put_arrays(vae, read_weights(path)[1])
    except ValueError as error:
        raise UserError(f"config.init_from {path} does not fit config.model: {error}") from error


def put_arrays(module: nnx.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Replace every parameter of a module.

    Raises:
        ValueError: names or shapes are not its own.
    """
    own = module_arrays(module)
    odd = sorted(arrays.keys() ^ own.keys())
    odd = odd or [name for name in own if arrays[name].shape != own[name].shape]
    if odd:
        raise ValueError(f"{odd[0]} is only in one of them, or of another shape")
    state = nnx.state(module, nnx.Param)
    for path, variable in nnx.to_flat_state(state):
        value = arrays[".".join(map(str, path))]
        variable.set_value(jnp.asarray(value, variable.dtype))
    nnx.update(module, state)


def export_newest(workdir: AnyPath) -> dict[str, AnyPath]:
    """Write the averaged weights of a working folder's newest checkpoint.

        python -m pyratok_jax.demo.backbone WORKDIR

    Raises:
        UserError: it holds none.
    """
    try:
        config = ConfigDict(read_json(workdir / "config.json", dict[str, Json]))
        steps = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
        step = max(steps)
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir} holds no checkpoint of a training") from error
    task = BackboneTask(config)
    task.prepare(workdir)
    partition = Partition(task.system, task.is_trainable)
    return export(task, partition.merge(read_parameters(workdir, step), partition.frozen), workdir)


def export(task: BackboneTask, system: BackboneSystem, workdir: AnyPath) -> dict[str, AnyPath]:
    """Measure the latents' mean and deviation on batches of training, write the weights."""
    graph, state = nnx.split(system.vae)
    encode = jax.jit(lambda s, x: nnx.merge(graph, s).encode(to_model_range(x)).mean)
    loader = task.clips()
    loader.set_state({"step": task.config.steps})
    latents = [np.asarray(encode(state, next(loader)["video"])) for _ in range(32)]
    flat = np.concatenate([x.reshape(-1, x.shape[-1]) for x in latents])
    sizes = dataclasses.replace(
        system.vae.config,
        latents_mean=tuple(round(float(x), 4) for x in flat.mean(axis=0)),
        latents_std=tuple(round(float(x), 4) for x in flat.std(axis=0)),
    )
    arrays = {name: np.asarray(value) for name, value in module_arrays(system.vae).items()}
    path = workdir / f"{workdir.name}.safetensors"
    write_weights(path, config_to_dict(sizes), arrays, bits=8)
    return {"weights": path}
