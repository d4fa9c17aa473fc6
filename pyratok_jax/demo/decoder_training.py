"""The decoder alone, on latents as they are and as a tokenizer's codes give them back.

A decoder that has only seen the encoder's latents takes what codes lose for detail. Encoder, levels
and codes stay as they are here, and with them every token.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from pyratok_jax.checkpoints.partition import module_arrays
from pyratok_jax.checkpoints.pretrained import write_weights
from pyratok_jax.demo.backbone_training import chroma, clip_rmse
from pyratok_jax.demo.clips import PhasedTask
from pyratok_jax.errors import UserError
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.models.pyratok.model import PyraTok
from pyratok_jax.models.vae_families import config_to_dict
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.tokenizer import load_tokenizer, to_model_range
from pyratok_jax.training.loop.loop import train

TRAINED = ("vae.decoder.", "vae.post_quant_conv.", "vae.linear.first_out.", "vae.linear.later_out.")


class DecoderTask(PhasedTask):
    """The `contracts.Task` of this training.

    Args:
        config: `tokenizer` names the one whose frozen VAE gets a better decoder.

    Raises:
        UserError: there is no such tokenizer, or its VAE is none of the Wan architecture.
    """

    def __init__(self, config: ConfigDict):
        self.config = config
        self.system = load_tokenizer(config.tokenizer).model
        if not isinstance(self.system.vae, WanVAE):
            family = self.system.vae.config.family
            raise UserError(
                f"config.tokenizer {config.tokenizer} has a VAE of {family}, not of wan"
            )

    def is_trainable(self, name: str, variable: nnx.Variable) -> bool:
        """The decoder's network, and how its linear code comes back."""
        del variable
        return name.startswith(TRAINED)

    def loss(
        self,
        system: PyraTok,
        batch: Mapping[str, Array],
        key: PRNGKeyArray,
        progress: Float[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Mean log squared error of clips from latents and from codes, and of their colour.

        Logarithms, so that a decibel counts alike in an easy and in a hard clip, and with codes as
        without.
        """
        del key, progress
        weights, video = self.config.loss, to_model_range(batch["video"])
        posterior = system.vae.posterior(video)
        latent = system.vae.normalize(posterior.mean.astype(jnp.float32))
        rebuilt = system.quantize(posterior.stages, latent, None)[1]
        both = jax.lax.stop_gradient(jnp.concatenate([latent, rebuilt]))
        clean, coded = jnp.split(system.decode(both), 2)
        terms = {
            "clean": _log_error(clean, video),
            "codes": _log_error(coded, video),
            "chroma": jnp.log(clip_rmse(chroma(clean), chroma(video))),
            "slope": slope_error(chroma(clean), chroma(video)),
        }
        total = sum(weights[name] * value for name, value in terms.items())
        shown = {"psnr": terms["clean"], "psnr_codes": terms["codes"]}
        decibels = {name: 10 * (jnp.log(4.0) - x) / jnp.log(10.0) for name, x in shown.items()}
        return total, terms | decibels


def _log_error(a: Float[Array, "b t h w c"], b: Float[Array, "b t h w c"]) -> Float[Array, ""]:
    squares = jnp.mean(jnp.square(a - b), axis=(1, 2, 3, 4))
    return jnp.mean(jnp.log(squares + 1e-4))


def slope_error(
    found: Float[Array, "b t h w c"], wanted: Float[Array, "b t h w c"]
) -> Float[Array, ""]:
    """Mean squared distance from 1 of the slopes of `found`, regressed on `wanted`.

    Least squares shrinks what it cannot predict, so that colours pale. A channel of a clip that
    hardly varies (by 0.01 of a range of 2) counts for little.
    """
    axes = (1, 2, 3)
    a, b = (x - x.mean(axis=axes, keepdims=True) for x in (found, wanted))
    variance = jnp.mean(b * b, axis=axes)
    shares = variance / (variance + 1e-4)
    slopes = jnp.mean(a * b, axis=axes) / (variance + 1e-6)
    return jnp.mean(shares * (slopes - 1.0) ** 2)


def run(config: ConfigDict, workdir: AnyPath) -> dict[str, AnyPath] | None:
    """Train the decoder and write the whole VAE; None when interrupted (and saved).

    Raises:
        UserError: whatever the user can mend.
    """
    task = DecoderTask(config)
    trained = train(config, workdir, task)
    if not trained.finished:
        return None
    weights = trained.state.ema or trained.state.params
    vae = trained.partition.merge(weights, trained.frozen).vae
    arrays = {name: np.asarray(value) for name, value in module_arrays(vae).items()}
    path = workdir / f"{workdir.name}.safetensors"
    # Statistics of the latent stay too: codes are of normalised latents.
    write_weights(path, config_to_dict(vae.config), arrays, bits=8)
    return {"checkpoint": workdir / "checkpoints", "weights": path}
