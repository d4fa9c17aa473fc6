"""The keys that only configs of the demo's own networks have, checked before anything begins."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from pyratok_jax.demo import TASKS
from pyratok_jax.demo.clips import phased_clips
from pyratok_jax.errors import UserError, short
from pyratok_jax.io import Json
from pyratok_jax.models.dino import DinoConfig
from pyratok_jax.models.wan_vae.config import WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from pyratok_jax.training.config_keys import Number, flattened

_SIZES: dict[str, Callable[[Mapping[str, Json]], object]] = {
    "backbone": lambda values: WanVAEConfig.from_dict(dict(values)),
    "vision": lambda values: DinoConfig(**values),
}


def check_demo_config(config: ConfigDict) -> None:
    """Refuse what neither the small VAE nor the small vision network can be trained with.

    Configs of other tasks pass: `training.config_check` looks at them.

    Raises:
        UserError: sizes of no network, phases, clips or shares that are none, a negative number.
    """
    if config.task not in TASKS:
        return
    for key, value in flattened(config):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and key.startswith(("data.", "loss.")) and not Number(0).holds(value):
            raise UserError(f"config.{key} is {short(value, 80)}, expected {Number(0).expected}")
    try:
        if config.task in _SIZES:
            _SIZES[config.task](config.model.to_dict())
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}") from error
    policies = WanVAE.remat_policies
    if config.task == "backbone" and config.remat not in policies:
        raise UserError(f"config.remat is {config.remat!r}, expected one of {', '.join(policies)}")
    phased_clips(config)
