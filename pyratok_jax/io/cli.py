"""The command lines of the package's modules."""

import argparse
import os
from typing import Any


def command_parser(
    module: str, description: str, *, epilog: str | None = None
) -> argparse.ArgumentParser:
    """A parser for `python -m MODULE` whose --help names the defaults.

    Args:
        module: dotted name of the module.
        description: what the command does.
        epilog: shown below the arguments: exit codes, for example.
    """
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


class _NoVerify(argparse.Action):
    def __call__(self, *arguments: Any, **options: Any) -> None:
        # In the environment, so that it holds for worker processes too.
        os.environ["PYRATOK_VERIFY"] = "0"


def add_no_verify(parser: argparse.ArgumentParser) -> None:
    """Add `--no-verify`, which leaves out the comparison of stored bytes with their hashes."""
    parser.add_argument(
        "--no-verify", nargs=0, action=_NoVerify, default=argparse.SUPPRESS,
        help="do not compare weights, checkpoints and finished shards with their hashes",
    )  # fmt: skip
