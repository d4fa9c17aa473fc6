"""The demo's steps on several meshes and numbers of processes against those on one device.

    python benchmarks/mesh_numbers.py [--steps 10] [--clips 8] [--folder DIR]

Every run is a `python -m pyratok_jax.train` of the real config (float32, every loss, the shipped
weights) from the same fitted levels, on virtual CPU devices or as joined processes by
`launch/local.sh`. Prints JSON: for each, the largest relative difference of the loss over the
steps, that of all parameters together (norms), and that of their way from the start, which
is short at the demo's learning rate. Runs that --folder already has are not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pyratok_jax.checkpoints.working_folder import newest_step, read_parameters

ROOT = Path(__file__).parents[1]
# Devices of one process wait for one another, and may share few cores.
PATIENT = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300"
    " --xla_cpu_collective_call_terminate_timeout_seconds=1800"
)
# Name: processes, devices of each, and the mesh.
RUNS: dict[str, tuple[int, int, dict[str, int]]] = {
    "8 devices, data 8": (1, 8, {"data": 8}),
    "8 devices, data 2, fsdp 4": (1, 8, {"data": 2, "fsdp": 4}),
    "8 devices, data 2, spatial 2, tensor 2": (1, 8, {"data": 2, "spatial": 2, "tensor": 2}),
    "2 processes, data 2": (2, 1, {"data": 2}),
    "4 processes, data 2, tensor 2": (4, 1, {"data": 2, "tensor": 2}),
}


def train(
    config: str, workdir: Path, flags: list[str], processes: int = 1, devices: int = 1
) -> Path:
    """One training; shows what it prints when it fails."""
    if (workdir / "metrics.json").exists():
        return workdir
    arguments = ["--config", config, "--workdir", str(workdir), *flags]
    call = [sys.executable, "-m", "pyratok_jax.train", *arguments]
    if processes > 1:
        call = ["bash", str(ROOT / "launch/local.sh"), str(processes), *arguments]
    variables = os.environ | {
        "PYTHON": sys.executable,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{PATIENT} --xla_force_host_platform_device_count={devices}",
    }
    print(" ".join(call), file=sys.stderr)
    done = subprocess.run(call, cwd=ROOT, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    return workdir


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    step = newest_step(workdir)
    assert step is not None, workdir
    arrays = read_parameters(workdir, step, prefer_ema=False)
    return {name: np.asarray(value, np.float64) for name, value in arrays.items()}


def losses(workdir: Path) -> np.ndarray:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


def norm(arrays: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(value**2) for value in arrays.values())))


def compare(run: Path, one: Path, start: dict[str, np.ndarray]) -> dict[str, Any]:
    a, b = parameters(run), parameters(one)
    difference = norm({name: a[name] - b[name] for name in b})
    return {
        "steps": len(losses(run)),
        "loss": float(np.max(np.abs(losses(run) / losses(one) - 1))),
        "parameters": difference / norm(b),
        "way_of_parameters": difference / norm({name: b[name] - start[name] for name in b}),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--config", default="configs/demo.py")
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--clips", type=int, default=8, help="of a batch")
    p.add_argument("--only", default="", help="run those whose name holds this")
    p.add_argument("--folder", type=Path, help="for the runs; none: a temporary one")
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        quick = ["--config.report.clips=1", "--config.report.lpips=false", "--config.log_every=1"]
        # One step of no length: the levels fitted, and a checkpoint to start from.
        start = train(
            options.config, folder / "start",
            [*quick, "--config.steps=1", "--config.optimizer.learning_rate=0.0",
             "--config.optimizer.warmup=0", "--config.calibration.batches=16",
             "--config.calibration.refine_steps=50"],
        )  # fmt: skip
        common = [*quick, f"--config.steps={options.steps}", f"--config.batch_size={options.clips}",
                  f"--config.init_from={start}"]  # fmt: skip
        one = train(options.config, folder / "one", common)
        found: dict[str, Any] = {"clips": options.clips, "loss_on_one_device": losses(one).tolist()}
        for name, (processes, devices, mesh) in RUNS.items():
            if options.only not in name:
                continue
            axes = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
            workdir = folder / name.replace(", ", "_").replace(" ", "")
            train(options.config, workdir, [*common, *axes], processes, devices)
            found[name] = compare(workdir, one, parameters(start))
            print(name, found[name], file=sys.stderr)
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
