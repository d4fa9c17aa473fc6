"""Where a training's numbers go: TensorBoard through clu, a JSON-lines file, the progress bar."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

SHOWN = ("loss", "l1", "lpips", "codebook", "autoregressive", "drift", "psnr")


class MetricsLog:
    """`metrics.jsonl` and `timing.jsonl` (a line per logged step), and TensorBoard events.

    Only process 0 writes. Lines of steps after `start`, from a run that was cut off, are dropped.
    What depends on the clock has a file of its own, so that a training that was interrupted leaves
    the same metrics as one that was not.
    """

    def __init__(self, workdir: Path, *, start: int, primary: bool = True):
        self._writer: Any = None
        if not primary:
            return
        self._metrics = _continued(workdir / "metrics.jsonl", start)
        self._timing = _continued(workdir / "timing.jsonl", start)
        # Imported here: it loads TensorFlow.
        from clu.metric_writers import SummaryWriter

        self._writer = SummaryWriter(str(workdir))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record one step's numbers."""
        self._write(step, values, "_metrics", "")

    def write_timing(self, step: int, values: Mapping[str, float]) -> None:
        """Record how long steps took and waited."""
        self._write(step, values, "_timing", "timing/")

    def _write(self, step: int, values: Mapping[str, float], file: str, prefix: str) -> None:
        if self._writer is None:
            return
        stream = getattr(self, file)
        stream.write(json.dumps({"step": step} | dict(values)) + "\n")
        stream.flush()
        self._writer.write_scalars(step, {prefix + name: x for name, x in values.items()})

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._metrics.close()
            self._timing.close()
            self._writer.close()


def _continued(path: Path, start: int) -> Any:
    """The file, open for appending, with no line of a step after `start`."""
    lines = [line for line in read_metrics(path) if line["step"] <= start]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(scratch, path)
    return path.open("a")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file; a last line that was cut off is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) pairs of a metrics file."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(path):
        for name, value in line.items():
            if name != "step" and np.isfinite(value):
                found.setdefault(name, []).append((int(line["step"]), float(value)))
    return found


class StepBar:
    """Progress over the steps with ETA and loss terms; plain lines where there is no terminal."""

    def __init__(self, start: int, steps: int, *, enabled: bool = True):
        self._console = Console(highlight=False)
        self._enabled, self._steps, self._start = enabled, steps, start
        self._begin = time.monotonic()
        columns = (
            TextColumn("training"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            Remaining(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(
            *columns,
            console=self._console,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=steps, completed=start)

    def __enter__(self) -> "StepBar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """A step is done."""
        self._bar.update(self._task, completed=step)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """New numbers."""
        text = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        self._bar.update(self._task, description=text)
        if self._enabled and not self._console.is_terminal:
            rate = (time.monotonic() - self._begin) / max(step - self._start, 1)
            left = round(rate * (self._steps - step))
            eta = f"{left // 60}:{left % 60:02d}"
            self._console.print(f"step {step}/{self._steps}  ETA {eta}  {text}", soft_wrap=True)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._enabled:
            self._console.print(text, soft_wrap=True)
