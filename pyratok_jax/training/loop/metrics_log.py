"""Where a training's numbers go: TensorBoard through clu, JSON-lines files, the progress bar."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np
from ml_collections import ConfigDict

from pyratok_jax.errors import UserError
from pyratok_jax.io.atomic import write_text
from pyratok_jax.io.documents import checked, parse_json, read_limited
from pyratok_jax.io.mirror import Mirror
from pyratok_jax.io.progress import PlainConsole, progress_bar
from pyratok_jax.io.remote import AnyPath
from pyratok_jax.io.tensorflow import load_tensorflow
from pyratok_jax.training.config_keys import flattened
from pyratok_jax.training.loop.contracts import Evaluation

_Line = dict[str, float]
_ADVICE = "remove that line, or the file: training does not need it"

if TYPE_CHECKING:
    from clu.metric_writers import MetricWriter

SHOWN = ("loss", "psnr", "l1", "lpips", "codebook", "autoregressive", "drift")
COMPILING = "compiling the training step"


class _Outputs(NamedTuple):
    metrics: TextIO
    timing: TextIO
    tensorboard: "MetricWriter"


class MetricsLog:
    """`metrics.jsonl` and `timing.jsonl` (a line per logged step), and TensorBoard events.

    Only process 0 writes. Lines of steps after `start`, from a run that was cut off, are dropped.
    What depends on the clock has a file of its own, so that a training that was interrupted leaves
    the same metrics as one that was not.

    Objects of a storage service cannot be appended to: for a remote working folder the files are
    written locally, and uploaded whole every half minute and before each checkpoint.
    """

    def __init__(self, workdir: AnyPath, *, start: int, primary: bool = True):
        self._outputs: _Outputs | None = None
        if not primary:
            return
        self._mirror = Mirror(workdir)
        folder = self._mirror.folder
        # Imported here: it loads TensorFlow.
        load_tensorflow()
        from clu.metric_writers import SummaryWriter

        self._outputs = _Outputs(
            _continued(workdir / "metrics.jsonl", folder, start),
            _continued(workdir / "timing.jsonl", folder, start),
            SummaryWriter(str(folder)),
        )

    def write_settings(self, config: ConfigDict) -> None:
        """Record the config in TensorBoard: as hyper-parameters of the run, and as a text."""
        if self._outputs is not None:
            values = dict(flattened(config))
            plain = {
                k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()
            }
            self._outputs.tensorboard.write_hparams(plain)
            text = "".join(f"    {key} = {value!r}\n" for key, value in values.items())
            self._outputs.tensorboard.write_texts(0, {"config": text})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record one step's numbers."""
        if self._outputs is not None:
            _append(self._outputs.metrics, step, values)
            self._outputs.tensorboard.write_scalars(step, dict(values))
            self._mirror.push()

    def write_evaluation(self, step: int, name: str, evaluation: Evaluation) -> None:
        """Record what the evaluator `name` has found, in a line of its own."""
        self.write(step, {f"{name}/{key}": value for key, value in evaluation.metrics.items()})
        if self._outputs is not None and evaluation.pictures:
            pictures = {f"{name}/{key}": x[None] for key, x in evaluation.pictures.items()}
            self._outputs.tensorboard.write_images(step, pictures)

    def write_timing(self, step: int, values: Mapping[str, float]) -> None:
        """Record how long steps took and waited."""
        if self._outputs is not None:
            _append(self._outputs.timing, step, values)
            self._outputs.tensorboard.write_scalars(
                step, {f"timing/{name}": x for name, x in values.items()}
            )

    def flush(self) -> None:
        """Write all lines: before a checkpoint, from which a run resumes with these lines."""
        if self._outputs is not None:
            self._outputs.tensorboard.flush()
            self._mirror.push(now=True)

    def close(self) -> None:
        """Flush and close."""
        if self._outputs is not None:
            for output in self._outputs:
                output.close()
            self._mirror.close()


def _append(file: TextIO, step: int, values: Mapping[str, float]) -> None:
    file.write(json.dumps({"step": step} | dict(values)) + "\n")
    file.flush()


def _continued(path: AnyPath, folder: Path, start: int) -> TextIO:
    """The file in `folder`, open for appending, with the lines of `path` up to step `start`."""
    lines = [line for line in read_metrics(path) if line["step"] <= start]
    own = folder / path.name
    write_text(own, "".join(json.dumps(line) + "\n" for line in lines))
    return own.open("a")


def read_metrics(path: AnyPath) -> list[dict[str, float]]:
    """The lines of a metrics file; a last line that was cut off is left out.

    Raises:
        UserError: unreadable, or a line that is no object of numbers with a step.
    """
    lines: list[dict[str, float]] = []
    texts = read_limited(path).split(b"\n") if path.exists() else []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = checked(parse_json(text, f"{path}, line {number}"), _Line, str(path), _ADVICE)
            if "step" not in line:
                raise UserError(f"{path}, line {number} has no step; {_ADVICE}")
        except (UserError, UnicodeDecodeError) as error:
            if number >= len(texts) - 1 and not path.read_bytes().endswith(b"\n"):
                break
            raise UserError(f"{path}, line {number} is damaged ({error}); {_ADVICE}") from error
        lines.append(line)
    return lines


def curves(path: AnyPath) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) pairs of a metrics file."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(path):
        for name, value in line.items():
            if name != "step" and np.isfinite(value):
                found.setdefault(name, []).append((int(line["step"]), float(value)))
    return found


class StepBar:
    """Progress over the steps with time left and loss terms.

    Where there is no terminal: a line for every logged step, and one at least every half minute.
    """

    def __init__(self, start: int, steps: int, *, enabled: bool = True):
        self._console = PlainConsole()
        self._enabled, self._steps = enabled, steps
        self._bar = progress_bar(self._console, silent=not enabled)
        self._task = self._bar.add_task("training", total=steps, completed=start, visible=enabled)

    def __enter__(self) -> "StepBar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Note that a step is done."""
        if step == 1 or self._bar.note == COMPILING:
            self._bar.note = ""
        self._bar.update(self._task, completed=step)

    def compiling(self) -> None:
        """Say that the first step is compiled, which may take minutes."""
        self._bar.note = COMPILING
        if not self._console.is_terminal:
            self.say(COMPILING)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Show new numbers."""
        self._bar.note = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        if not self._console.is_terminal:
            self.say(f"step {step}/{self._steps}  {self._bar.note}")

    def say_metrics(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Print what the evaluator `name` has measured."""
        text = "  ".join(f"{key} {value:.4g}" for key, value in metrics.items())
        self.say(f"step {step}  {name}: {text}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self._console.print(text, soft_wrap=True)
