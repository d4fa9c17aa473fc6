"""The families of video VAEs by name. A new one is a module of `models` and an entry here."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pyratok_jax.io import Json
from pyratok_jax.models.vae_config import VideoVAEConfig

if TYPE_CHECKING:
    from pyratok_jax.models.video_vae import VideoVAE


class Family(NamedTuple):
    """A registered family.

    Attributes:
        config: the sizes' class.
        vae: built as `vae(config, rngs=..., dtype=..., param_dtype=..., remat=...)`.
        kind: `kind` in the config.json of converted weights.
    """

    config: type[VideoVAEConfig]
    vae: "type[VideoVAE]"
    kind: str


def _wan() -> Family:
    from pyratok_jax.models.wan_vae.config import WanVAEConfig
    from pyratok_jax.models.wan_vae.model import WanVAE

    return Family(WanVAEConfig, WanVAE, "wan_vae")


def _cogvideox() -> Family:
    from pyratok_jax.models.cogvideox import CogVideoXConfig, CogVideoXVAE

    return Family(CogVideoXConfig, CogVideoXVAE, "cogvideox_vae")


def _hunyuan_video() -> Family:
    from pyratok_jax.models.hunyuan_video import HunyuanVideoConfig, HunyuanVideoVAE

    return Family(HunyuanVideoConfig, HunyuanVideoVAE, "hunyuan_video_vae")


def _mochi() -> Family:
    from pyratok_jax.models.mochi import MochiConfig, MochiVAE

    return Family(MochiConfig, MochiVAE, "mochi_vae")


def _svd() -> Family:
    from pyratok_jax.models.svd import SVDVAE, SVDConfig

    return Family(SVDConfig, SVDVAE, "svd_vae")


# Imported when first asked for, so that code that knows the interface alone loads no family.
FAMILIES: dict[str, Callable[[], Family]] = {
    "wan": _wan,
    "cogvideox": _cogvideox,
    "hunyuan_video": _hunyuan_video,
    "mochi": _mochi,
    "svd": _svd,
}
UNNAMED = "wan"  # the family of files that were written before they named one


def vae_family(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in FAMILIES:
        raise ValueError(f"VAE family {name!r} is not one of {', '.join(FAMILIES)}")
    return FAMILIES[name]()


def kinds() -> dict[str, str]:
    """`kind` of converted weights -> family."""
    return {vae_family(name).kind: name for name in FAMILIES}


def config_to_dict(config: VideoVAEConfig) -> dict[str, Json]:
    """Family and sizes as plain values for a JSON file; `config_from_dict` reads them back."""
    return {"family": config.family, **config.to_dict()}


def config_from_dict(values: dict[str, Json]) -> VideoVAEConfig:
    """The configuration written by `config_to_dict`, or sizes without a family, which are Wan's.

    Raises:
        ValueError: an unknown family, or sizes that do not go together.
    """
    values = dict(values)
    return vae_family(values.pop("family", UNNAMED)).config.from_dict(values)
