r"""C3D weights of UCF-101 for the Inception score, from a .npz of Chainer or a torch state.

    python -m weights_conversion.c3d --input conv3d_deepnetA_ucf.npz --mean mean2.npz \
        --output weights/c3d

`--mean` holds the clip that is subtracted: (3, 16, h, w), BGR, whose centre of 112x112 is kept.
"""

import argparse
from pathlib import Path

from pyratok_jax.errors import run_cli
from weights_conversion.command import convert, make_parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command-line flags."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--mean", required=True, type=Path, help=".npz of the mean clip")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Convert the network."""
    options = parse(arguments)
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.checkpoints.scorers import C3D_KIND
    from weights_conversion.networks.c3d import make_plan, open_source, read_mean

    source = open_source(Path(options.input))
    plan = make_plan(source, read_mean(options.mean))
    return convert(options, kind=C3D_KIND, config={"classes": "ucf-101"}, plan=plan, title="C3D")


if __name__ == "__main__":
    run_cli(main)
