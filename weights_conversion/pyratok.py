"""Convert the published PyraTok checkpoint (AutoencoderKLPyraTok) into a working folder.

    python -m weights_conversion.pyratok --input DIR_OR_PT --output WORKDIR --verify

`reconstruct`, `evaluate` and `export_tokens` take the folder as --checkpoint. The published model
quantises the latent of a Wan 2.1 VAE in its own scale, without statistics: four residual stages of
16 signs. Its text layers are left out: the published code multiplies what they give by zero.
"""

import argparse

from pyratok_jax.errors import require, run_cli
from pyratok_jax.io.cli import say
from weights_conversion.command import DRY, make_parser


def main(arguments: list[str] | None = None) -> int:
    """Convert one checkpoint."""
    parser: argparse.ArgumentParser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--verify", action="store_true", help="compare ids (needs diffusers)")
    options = parser.parse_args(arguments)
    if options.verify:
        require("torch", "diffusers")
    # Heavy imports wait until the command line is known to be sound.
    from weights_conversion.networks.pyratok import (
        make_plan,
        open_published,
        verify,
        write_workdir,
    )

    published = open_published(options.input)
    plan = make_plan(published).check()
    say(plan.report())
    if options.dry_run:
        say(DRY)
        return 0
    output = write_workdir(
        options.output, published, plan, overwrite=options.overwrite, dtype=options.dtype
    )
    say(f"written: {output}")
    if options.verify:
        for line in verify(published, output):
            say(line)
    return 0


if __name__ == "__main__":
    run_cli(main)
