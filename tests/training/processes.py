"""Starting `tests.training.worker` in processes, alone or joined over loopback."""

import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.compiler_flags import quick_environment

ROOT = Path(__file__).parents[2]
# Devices of one process wait for one another, and here they share two cores.
PATIENT = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300"
    " --xla_cpu_collective_call_terminate_timeout_seconds=900"
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(devices: int = 1, large: bool = False) -> dict[str, str]:
    variables = quick_environment(devices, large)
    variables["XLA_FLAGS"] += f" {PATIENT}"
    # Without PyTorch, transformers loads its tokenizers in half the time.
    return variables | {"TF_CPP_MIN_LOG_LEVEL": "3", "USE_TORCH": "0"}


def launch(trainings: list[dict], count: int = 1, devices: int = 1) -> list[subprocess.Popen]:
    """Start `count` joined processes with `devices` devices each."""
    command = [sys.executable, "-m", "tests.training.worker", json.dumps(trainings)]
    port = free_port()
    processes = []
    for i in range(count):
        variables = environment(devices, trainings[0].get("task") == "demo")
        if count > 1:
            variables |= {
                "PYRATOK_COORDINATOR": f"127.0.0.1:{port}",
                "PYRATOK_PROCESSES": str(count),
                "PYRATOK_PROCESS_ID": str(i),
            }
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=variables, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    return processes


def finish(processes: list[subprocess.Popen], timeout: float = 900) -> list[tuple[int, str]]:
    """Exit codes and what was printed."""

    def read(process: subprocess.Popen) -> str:
        return process.communicate(timeout=timeout)[0]

    try:
        # All at once: a pipe that nobody reads would stop a process that says much.
        with ThreadPoolExecutor(len(processes)) as readers:
            outputs = list(readers.map(read, processes))
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, text) for p, text in zip(processes, outputs, strict=True)]


def execute(trainings: list[dict], count: int = 1, devices: int = 1, timeout: float = 900) -> None:
    """Run to the end; any failure is shown."""
    for code, text in finish(launch(trainings, count, devices), timeout):
        assert code == 0, text[-4000:]


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def rows(workdir: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def same_bits(a: Path, b: Path) -> bool:
    first, second = arrays(a), arrays(b)
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )
