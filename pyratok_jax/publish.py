"""A trained tokenizer or prior as a folder to hand on: `python -m pyratok_jax.publish --help`."""

import argparse
import shlex
from collections.abc import Sequence

from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io.cli import command_parser, say
from pyratok_jax.io.mirror import files_below
from pyratok_jax.io.remote import AnyPath, any_path, check_writable


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = command_parser(
        "pyratok_jax.publish",
        "Write a trained tokenizer, or a prior, as a folder that can be uploaded: "
        "model.safetensors, tokenizer.json or generator.json, the training's config and a model "
        "card with the measured numbers. load_tokenizer or load_generator reads it, from a disk or "
        "as hf://ORG/NAME.",
        examples=[
            "runs/demo --output my-tokenizer",
            "runs/own --output x --bundle backbone",
            "runs/generator --output my-prior --tokenizer hf://ORG/NAME --results results",
        ],
    )
    p.add_argument("run", help="working folder of a training, or its checkpoints/STEP")
    p.add_argument("--output", required=True, help="a new folder (local or gs://)")
    p.add_argument(
        "--bundle", nargs="*", choices=("backbone", "language", "tokenizer"), default=[],
        help="frozen parts to copy into it; others are named by their hash. Of a prior: language "
        "and tokenizer",
    )  # fmt: skip
    p.add_argument(
        "--tokenizer", default="",
        help="of a prior: how its folder names the tokenizer; empty: as the training did",
    )  # fmt: skip
    p.add_argument(
        "--results", nargs="*", default=[],
        help="of a prior: --output of evaluate --task generation, whose figures the card shows",
    )  # fmt: skip
    p.add_argument("--license", default="", help="of the model card, such as apache-2.0")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = parser().parse_args(argv)
    folder = _publish(arguments)
    for file in files_below(folder):
        say(f"written: {file}")
    say(f"upload: hf upload ORG/NAME {shlex.quote(str(folder))}")


def _publish(arguments: argparse.Namespace) -> AnyPath:
    """Write the folder of whatever `run` is.

    Raises:
        UserError: an option that is not for it, or as the publishing functions.
    """
    from pyratok_jax.generator.publishing import Publication, is_generator, publish_generator
    from pyratok_jax.tokenizer.publishing import publish

    if arguments.run.startswith("hf://"):
        raise UserError(f"{arguments.run} is a published folder already")
    run, output, bundle = any_path(arguments.run), any_path(arguments.output), arguments.bundle
    check_writable(output, "--output")
    if is_generator(run):
        if "backbone" in bundle:
            raise UserError("--bundle backbone: a prior has none; give --bundle tokenizer")
        how = Publication(
            tuple(bundle), arguments.license, arguments.tokenizer, tuple(arguments.results)
        )
        return publish_generator(run, output, how)
    if arguments.tokenizer or arguments.results or "tokenizer" in bundle:
        raise UserError(
            f"{run} is no prior: --tokenizer, --results and --bundle tokenizer are for priors"
        )
    return publish(run, output, bundle=tuple(bundle), license=arguments.license)


if __name__ == "__main__":
    run_cli(main)
