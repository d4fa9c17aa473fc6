"""A host's log beside its run: `python -m pyratok_jax.pods.keep_log FILE FOLDER`.

The launch scripts call it when a training has ended. Objects of a storage service cannot be
appended to, so every start has a log of its own, named after the host and the time.
"""

import shutil
import socket
import time
from collections.abc import Sequence

from pyratok_jax.errors import UserError, run_cli
from pyratok_jax.io.atomic import atomic_path
from pyratok_jax.io.cli import command_parser
from pyratok_jax.io.remote import any_path


def main(argv: Sequence[str] | None = None) -> None:
    """Copy the log; nothing is printed."""
    parser = command_parser(
        "pyratok_jax.pods.keep_log",
        "Copy a log to FOLDER/HOST-DATE-TIME.log.",
        examples=["train.log gs://BUCKET/RUN/logs"],
    )
    parser.add_argument("file", help="the log")
    parser.add_argument("folder", help="where to (local or gs://)")
    arguments = parser.parse_args(argv)
    name = f"{socket.gethostname()}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    try:
        with atomic_path(any_path(arguments.folder) / name) as copy:
            shutil.copyfile(arguments.file, copy)
    except OSError as error:
        raise UserError(f"the log {arguments.file} is not kept: {error}") from error


if __name__ == "__main__":
    run_cli(main)
