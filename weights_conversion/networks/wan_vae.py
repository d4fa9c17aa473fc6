"""The Wan VAEs: sizes, the plan, and loading a published or converted one."""

from collections.abc import Callable
from pathlib import Path
from typing import Unpack, cast

from flax import nnx

from pyratok_jax.checkpoints.conversion import ConversionPlan, match
from pyratok_jax.checkpoints.foreign.sources import TensorSource, open_tensors
from pyratok_jax.checkpoints.partition import module_shapes
from pyratok_jax.checkpoints.weights import read_config
from pyratok_jax.errors import UserError, short
from pyratok_jax.io.documents import WRONG_VALUE, check_sizes, read_json
from pyratok_jax.models.wan_vae.config import WAN21, WAN22, WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from weights_conversion.networks.wan_vae_published import Layout, detect, entries
from weights_conversion.vae.converting import is_converted, load_planned, load_vae
from weights_conversion.vae.naming import LoadOptions

KIND = "wan_vae"


def vae_shapes(config: WanVAEConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every array of the VAE."""
    return module_shapes(lambda: WanVAE(config, rngs=nnx.Rngs(0)))


def make_plan(source: TensorSource, config: WanVAEConfig) -> ConversionPlan:
    """Match a source against the VAE of `config`; call `check()` on the result."""
    layout = detect(source)
    if layout.is_residual != config.is_residual:
        held, asked = ("residual", "plain") if layout.is_residual else ("plain", "residual")
        raise UserError(
            f"{source.path}: holds the {held} layout, the configuration describes the {asked} one"
        )
    shapes = vae_shapes(config)
    return match(source, entries(shapes, config, layout), shapes, skip=_skip(layout))


def _skip(layout: Layout) -> Callable[[str], str | None]:
    """With a prefix, the file also holds other models' weights, which are left out."""
    prefix = layout.prefix
    return lambda key: f"not under {prefix}" if prefix and not key.startswith(prefix) else None


def source_config(source: TensorSource, path: str | Path | None = None) -> WanVAEConfig:
    """The VAE's configuration: from `path`, from a `config.json` beside the weights, or published.

    Raises:
        UserError: an unreadable file, or the configuration of another model.
    """
    folder = source.path if source.path.is_dir() else source.path.parent
    file = Path(path) if path else folder / "config.json"
    published = WAN22 if detect(source).is_residual else WAN21
    if not path and not file.is_file():
        return published
    values = read_json(file)
    name = values.get("_class_name", "AutoencoderKLWan") if isinstance(values, dict) else None
    if name != "AutoencoderKLWan" or not values.keys() & {"base_dim", "z_dim", "is_residual"}:
        if not path:
            return published  # The original repositories hold the video model's config.json there.
        found = short(str(name), 60)
        raise UserError(f"{file}: describes {found}, expected the sizes of an AutoencoderKLWan")
    try:
        return check_sizes(WanVAEConfig.from_dict(values), str(file))
    except WRONG_VALUE as error:
        reason = short(str(error))
        raise UserError(f"{file}: no usable VAE configuration ({reason})") from error


def recognises(source: TensorSource) -> bool:
    """Whether tensors are a Wan VAE's, from their names."""
    try:
        detect(source)
    except UserError:
        return False
    return True


def load_wan_vae(path: str | Path, **options: Unpack[LoadOptions]) -> WanVAE:
    """A Wan VAE: of a converted folder, or of a published file read directly; see `load_vae`."""
    path = Path(path)
    if is_converted(path):
        read_config(path, KIND)
        return cast(WanVAE, load_vae(path, **options))
    source = open_tensors(path)
    config = source_config(source)
    return cast(WanVAE, load_planned(config, make_plan(source, config), options))
