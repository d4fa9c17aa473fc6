"""Profiler traces of some steps, and dumps of what XLA makes of the programs."""

import os
import re
import socket
from pathlib import Path

import jax

from pyratok_jax.errors import UserError
from pyratok_jax.training.distributed.hosts import INDEX


def profiled_steps(text: str) -> range:
    """The steps that "10:15" names (10 to 15, both included); empty for an empty text.

    Raises:
        UserError: not two step numbers in order.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(
            f"--profile_steps {text}: expected FIRST:LAST with 1 <= FIRST <= LAST, such as 10:15"
        )
    return range(int(match[1]), int(match[2]) + 1)


class Profiler:
    """Writes a trace of the wanted steps into the working folder."""

    def __init__(self, steps: range, workdir: Path):
        self.folder = workdir / "profile"
        if jax.process_count() > 1:
            self.folder /= f"process_{jax.process_index()}"
        self._steps, self._running = steps, False

    def before(self, step: int) -> None:
        """Begin, if this step is the first one wanted (or a resumed run's first among them)."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self.folder))
            self._running = True

    def after(self, step: int, last: bool, result: object) -> bool:
        """End after the last wanted step or the run's last; True when a trace was written."""
        if not self._running or (step + 1 in self._steps and not last):
            return False
        jax.block_until_ready(result)
        self.close()
        return True

    def close(self) -> None:
        """End a trace that is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


def dump_programs(folder: str) -> Path | None:
    """Let XLA write every program it compiles into a folder of this process; None without one.

    Must be called before the first computation.

    Raises:
        UserError: the folder cannot be made.
    """
    if not folder:
        return None
    name = f"process_{os.environ[INDEX]}" if INDEX in os.environ else socket.gethostname()
    path = Path(folder).absolute() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--xla_dump_to {folder}: {error.strerror}; name a folder") from error
    flags = f"--xla_dump_to={path} --xla_dump_hlo_as_text"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return path
