"""The command lines of the package's modules."""

import argparse


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
