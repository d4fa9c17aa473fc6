"""The small VAE's own training: L1 + LPIPS + KL on short clips (the demo's frozen backbone)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.modules import module_arrays
from pyratok_jax.checkpoints.pretrained import write_weights
from pyratok_jax.demo.phased import PhasedTask
from pyratok_jax.models import video_vae
from pyratok_jax.models.vae_families import config_to_dict
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.nn import partitioning
from pyratok_jax.tokenizer import to_model_range
from pyratok_jax.training.loop.train import Trained, train


class BackboneSystem(nnx.Module):
    """The VAE in training, and the frozen network that LPIPS is measured with."""

    def __init__(self, config: ConfigDict, lpips: nnx.Module | None):
        sizes = WanVAEConfig.from_dict(config.model.to_dict())
        self.vae = WanVAE(sizes, rngs=nnx.Rngs(config.seed), remat=config.remat)
        self.lpips = nnx.data(lpips)


class BackboneTask(PhasedTask):
    """What `loop.train` needs to know of the VAE's training."""

    def __init__(self, config: ConfigDict):
        self.config = config
        lpips = None
        if config.loss.lpips:
            from pyratok_jax.checkpoints.foreign.lpips import load_lpips

            lpips = load_lpips("vgg")
        self.system = BackboneSystem(config, lpips)

    def is_trainable(self, name: str, variable: nnx.Variable) -> bool:
        """The whole VAE."""
        return name.startswith("vae.")

    def loss(
        self,
        system: BackboneSystem,
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        progress: Float[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """L1 + w LPIPS + w KL to a unit Gaussian; LPIPS on some frames of clips only.

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
        kl_weight = weights.kl_clips if video.shape[1] > 1 else weights.kl_frames
        total = terms["l1"] + kl_weight * kl + weights.mse * jnp.mean(jnp.square(output - video))
        frames = min(weights.lpips_frames, video.shape[0] * video.shape[1])
        if weights.lpips and video.shape[1] > 1 and frames:
            pick = jax.random.permutation(pick_key, video.shape[0] * video.shape[1])[:frames]
            a, b = (x.reshape(-1, *x.shape[2:])[pick] for x in (output, video))
            assert system.lpips is not None
            terms["lpips"] = jnp.mean(partitioning.with_replicated_kernels(system.lpips)(a, b))
            total = total + weights.lpips * terms["lpips"]
        return total, terms


def run(config: ConfigDict, workdir: Path) -> dict[str, Path] | None:
    """Train the VAE and write its averaged weights; None when interrupted (and saved).

    Raises:
        UserError: whatever the user can mend.
    """
    task = BackboneTask(config)
    trained = train(config, workdir, task)
    if not trained.finished:
        return None
    return {"checkpoint": workdir / "checkpoints", **export(task, trained, workdir)}


def export(task: BackboneTask, trained: Trained, workdir: Path) -> dict[str, Path]:
    """Measure the latents' statistics and held-out quality, write the weights and a model card."""
    weights = trained.state.ema or trained.state.params
    system = trained.partition.merge(weights, trained.frozen)
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
    write_weights(path, config_to_dict(sizes), arrays)
    return {"weights": path}
