"""Convert a published Wan VAE, or load one.

Reads the original `.pth` files of Wan 2.1 and 2.2, their safetensors repacks, and diffusers files
(single or sharded). Which of them a file is, is seen from its keys. `--to diffusers` goes the other
way: from a converted folder to a diffusers folder, with every array equal bit for bit.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Unpack, cast

from flax import nnx

from pyratok_jax.checkpoints.conversion import ConversionPlan, match
from pyratok_jax.checkpoints.foreign.sources import TensorSource, open_tensors
from pyratok_jax.checkpoints.partition import module_shapes
from pyratok_jax.checkpoints.weights import load_checkpoint, read_config
from pyratok_jax.errors import UserError, require, run_cli, short
from pyratok_jax.io.cli import say
from pyratok_jax.io.documents import WRONG_VALUE, check_sizes, read_json
from pyratok_jax.models.vae_families import config_to_dict
from pyratok_jax.models.wan_vae.config import WAN21, WAN22, WanVAEConfig
from pyratok_jax.models.wan_vae.model import WanVAE
from weights_conversion.command import convert, make_parser
from weights_conversion.vae.converting import is_converted, load_planned, load_vae
from weights_conversion.vae.naming import LoadOptions
from weights_conversion.wan_vae_published import Layout, detect, entries, verify, write_diffusers

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


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command-line flags."""
    parser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--config", help="the VAE's configuration, where its sizes are unusual")
    parser.add_argument(
        "--verify", action="store_true", help="compare with the torch reference (needs diffusers)"
    )
    parser.add_argument(
        "--to",
        default="pyratok",
        choices=["pyratok", "diffusers"],
        help="diffusers: write a diffusers folder from a converted one",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Convert one VAE."""
    options = parse(arguments)
    if options.to == "diffusers":
        record = read_config(options.input, KIND)
        config = WanVAEConfig.from_dict(record["config"])
        arrays = load_checkpoint(options.input, vae_shapes(config))
        file = write_diffusers(options.output, arrays, config, overwrite=options.overwrite)
        say(f"written: {file.parent}")
        return 0
    if options.verify:
        require("torch", "diffusers")
    source = open_tensors(options.input)
    config = source_config(source, options.config)
    layout = detect(source)
    title = f"Wan VAE ({'residual' if layout.is_residual else 'plain'}, {layout.naming} names)"
    code = convert(
        options,
        kind=KIND,
        config=config_to_dict(config),
        plan=make_plan(source, config),
        title=title,
    )
    if options.verify and not options.dry_run:
        for line in verify(source, config, load_wan_vae(options.output), layout):
            say(line)
    return code


if __name__ == "__main__":
    run_cli(main)
