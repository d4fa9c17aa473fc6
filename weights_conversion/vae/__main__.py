"""Convert a published video VAE of any family.

    python -m weights_conversion.vae --input CogVideoX-2b/vae --output weights/cogvideox

Reads Wan 2.1 and 2.2 (QwenImage's VAE is Wan 2.1's), CogVideoX, HunyuanVideo, Mochi and Stable
Video Diffusion, each in diffusers' and its original naming. The family is told from the names of
the tensors. `--to diffusers` goes the other way, every array equal bit for bit.
"""

import sys

from pyratok_jax.errors import UserError, require, run_cli
from pyratok_jax.io.cli import say
from pyratok_jax.models.vae_families import FAMILIES, config_to_dict
from weights_conversion import wan_vae
from weights_conversion.command import DRY, check_export, convert, make_parser


def main(arguments: list[str] | None = None) -> int:
    """Convert one VAE.

    Raises:
        UserError: tensors of no known family, or that do not fit; nothing is written then.
    """
    parser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--family", choices=list(FAMILIES), help="default: from the tensors")
    parser.add_argument("--config", help="a config.json, where it is not beside the weights")
    parser.add_argument("--verify", action="store_true", help="compare with diffusers")
    parser.add_argument("--to", default="pyratok", choices=["pyratok", "diffusers"],
                        help="diffusers: a diffusers folder of a converted one")  # fmt: skip
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    for_wan = _without_family(given)
    if options.to == "diffusers":
        check_export(options)
    elif options.verify:
        require("torch", "diffusers")
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.checkpoints.pretrained import load_backbone
    from weights_conversion.networks.wan_vae import recognises
    from weights_conversion.vae.converting import (
        kind_of,
        load_vae,
        make_plan,
        open_vae,
        recognise,
        source_config,
        verify,
        write_diffusers,
    )

    if options.to == "diffusers":
        backbone = load_backbone(options.input)
        if options.family not in (None, backbone.config.family):
            raise UserError(f"{options.input} is a VAE of the family {backbone.config.family}")
        if backbone.config.family == "wan":
            return wan_vae.main(for_wan)
        if options.dry_run:
            say(DRY)
            return 0
        file = write_diffusers(
            options.output, backbone.arrays, backbone.config, overwrite=options.overwrite
        )
        say(f"written: {file.parent}")
        return 0
    source = open_vae(options.input)
    layout = recognise(source, options.family)
    if layout is None:
        if options.family in (None, "wan") and recognises(source):
            return wan_vae.main(for_wan)
        raise UserError(
            f"{options.input}: the names of its tensors are not those of "
            f"{options.family or 'any known VAE'}; known families are {', '.join(FAMILIES)}"
        )
    config = source_config(source, layout, options.config)
    code = convert(
        options,
        kind=kind_of(config),
        config=config_to_dict(config),
        plan=make_plan(source, layout, config),
        title=f"{layout.converter.title} ({layout.naming.name} names)",
    )
    if options.verify and not options.dry_run:
        for line in verify(source, layout, load_vae(options.output)):
            say(line)
    return code


def _without_family(arguments: list[str]) -> list[str]:
    """Wan's own command knows every flag but --family."""
    kept, skip = [], False
    for word in arguments:
        if skip:
            skip = False
        elif word == "--family":
            skip = True
        elif not word.startswith("--family="):
            kept.append(word)
    return kept


if __name__ == "__main__":
    run_cli(main)
