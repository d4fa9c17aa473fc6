"""Convert a published Wan VAE, or load one.

Reads the original `.pth` files of Wan 2.1 and 2.2, their safetensors repacks, and diffusers files
(single or sharded). Which of them a file is, is seen from its keys. `--to diffusers` goes the other
way: from a converted folder to a diffusers folder, with every array equal bit for bit.
"""

import argparse

from pyratok_jax.errors import require, run_cli
from pyratok_jax.io.cli import say
from weights_conversion.command import DRY, check_export, convert, make_parser


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
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.checkpoints.foreign.sources import open_tensors
    from pyratok_jax.checkpoints.weights import load_checkpoint, read_config
    from pyratok_jax.models.vae_families import config_to_dict
    from pyratok_jax.models.wan_vae.config import WanVAEConfig
    from weights_conversion.networks.wan_vae import (
        KIND,
        load_wan_vae,
        make_plan,
        source_config,
        vae_shapes,
    )
    from weights_conversion.networks.wan_vae_published import detect, verify, write_diffusers

    if options.to == "diffusers":
        check_export(options)
        record = read_config(options.input, KIND)
        config = WanVAEConfig.from_dict(record["config"])
        arrays = load_checkpoint(options.input, vae_shapes(config))
        if options.dry_run:
            say(DRY)
            return 0
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
