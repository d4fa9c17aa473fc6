"""A trained tokenizer as a folder to hand on: `python -m pyratok_jax.publish --help`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pyratok_jax.errors import run_cli
from pyratok_jax.io.cli import command_parser


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.publish",
        "Write a trained tokenizer as a folder that can be uploaded: model.safetensors, "
        "tokenizer.json, the training's config and a model card with the measured numbers. "
        "load_tokenizer reads it, from a disk or as hf://ORG/NAME.",
        examples=["runs/demo --output my-tokenizer", "runs/own --output x --bundle backbone"],
    )
    p.add_argument("run", help="working folder of a training, or its checkpoints/STEP")
    p.add_argument("--output", required=True, help="a new folder")
    p.add_argument(
        "--bundle", nargs="*", choices=("backbone", "language"), default=[],
        help="frozen weights to copy into it; others are named by their hash",
    )  # fmt: skip
    p.add_argument("--license", default="", help="of the model card, such as apache-2.0")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = parser().parse_args(argv)
    from pyratok_jax.tokenizer.publishing import publish

    folder = publish(
        Path(arguments.run),
        Path(arguments.output),
        bundle=tuple(arguments.bundle),
        license=arguments.license,
    )
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"written: {file}")
    print(f"upload: hf upload ORG/NAME {folder}")


if __name__ == "__main__":
    run_cli(main)
