"""DINOv2 and DINOv3 weights, from transformers folders or the original checkpoints.

    python -m weights_conversion.dino --input dinov3-vitb16/ --output weights/dinov3_b
    python -m weights_conversion.dino --input dinov2_vitb14_reg4_pretrain.pth --output ...

Sizes are read from the tensors; what tensors do not tell (heads, norm epsilon) comes from a
`config.json` beside them, from flags, or from what the published models share.
"""

import argparse
from pathlib import Path

from pyratok_jax.errors import UserError, run_cli
from weights_conversion.command import convert, make_parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command-line flags."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, help="attention heads (default: config.json or 64s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Convert one DINO network."""
    options = parse(arguments)
    if options.heads is not None and options.heads < 1:
        raise UserError(f"--heads {options.heads}: expected a number of attention heads from 1")
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.checkpoints.foreign.sources import open_tensors
    from weights_conversion.networks.dino import KIND, make_plan, read_facts

    source = open_tensors(options.input)
    facts = read_facts(Path(options.input))
    if options.heads is not None:
        facts["heads"] = options.heads
    config, plan = make_plan(source, **facts)
    return convert(options, kind=KIND, config=config.to_dict(), plan=plan, title="DINO")


if __name__ == "__main__":
    run_cli(main)
