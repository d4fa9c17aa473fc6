"""Python processes that tests start."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.compiler_flags import quick_environment

ROOT = Path(__file__).parents[1]


def run_script(
    name: str, *arguments: object, devices: int = 1, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `tests/scripts/NAME.py` on `devices` virtual CPU devices; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.scripts.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=environment or quick_environment(devices),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done
