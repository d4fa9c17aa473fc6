"""Has every command that is named print its --help, and what of them loaded a heavy package.

Prints a JSON object: command -> the names of `HEAVY` that were loaded first by its --help.
"""

import contextlib
import io
import json
import runpy
import sys

# Of seconds to import; none is needed to understand a command line.
HEAVY = ("flax", "jax", "matplotlib", "optax", "tensorflow", "tensorflow_datasets", "transformers")


def loaded_by_help(command: str) -> list[str]:
    """Names of `HEAVY` that a command's --help loads and that were not loaded before."""
    before = set(sys.modules)
    sys.argv = [command, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    assert f"python -m {command}" in shown.getvalue(), command
    return [name for name in HEAVY if name in sys.modules and name not in before]


if __name__ == "__main__":
    found = {command: loaded_by_help(command) for command in sys.argv[1:]}
    json.dump(found, sys.stdout)
