"""How long commands take to answer --help, and the package to be imported.

    python benchmarks/command_start.py [--runs 3] [COMMAND ...]

Prints JSON: for every command (all of them if none is named) the least CPU and wall seconds of a
process over the runs, largest CPU time first, and whether JAX was loaded.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("pyratok_jax", "weights_conversion")


def commands() -> list[str]:
    """Modules that people start with `python -m`, dotted."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    found = [file for file in files if "run_cli(main)" in file.read_text().splitlines()[-1]]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in found]
    return [name.removesuffix(".__main__") for name in names]


def seconds(words: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of a Python process; its output is dropped.

    Raises:
        RuntimeError: it failed.
    """
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime, time.monotonic() - began


def loads_jax(command: str) -> bool:
    """Whether a process that answered --help has imported JAX."""
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{command!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({command!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit:\n"
        "    print('jax' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, text=True)
    return done.stdout.splitlines()[-1] == "True"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("commands", nargs="*")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    measured: dict[str, dict[str, float | bool]] = {}
    for name in ["import pyratok_jax", *(options.commands or commands())]:
        words = ["-c", name] if " " in name else ["-m", name, "--help"]
        runs = [seconds(words) for _ in range(options.runs)]
        cpu, wall = (min(one) for one in zip(*runs, strict=True))
        measured[name] = {"cpu_seconds": round(cpu, 2), "wall_seconds": round(wall, 2)}
        if " " not in name:
            measured[name]["jax"] = loads_jax(name)
    rows = sorted(measured.items(), key=lambda row: -float(row[1]["cpu_seconds"]))
    print(json.dumps(dict(rows), indent=1))


if __name__ == "__main__":
    main()
