"""The demo backbone's weights out of a stopped training: `python -m pyratok_jax.demo.backbone`."""

from collections.abc import Sequence

from pyratok_jax.errors import run_cli
from pyratok_jax.io.cli import command_parser, say
from pyratok_jax.io.remote import any_path


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = command_parser(
        "pyratok_jax.demo.backbone",
        "Write the averaged weights of the newest checkpoint of a training of the demo's backbone.",
        examples=["runs/demo_backbone"],
    )
    parser.add_argument("workdir", help="its working folder")
    arguments = parser.parse_args(argv)
    # Heavy imports wait until the command line is known to be sound.
    from pyratok_jax.demo.backbone_training import export_newest

    say(str(export_newest(any_path(arguments.workdir))["weights"]))


if __name__ == "__main__":
    run_cli(main)
