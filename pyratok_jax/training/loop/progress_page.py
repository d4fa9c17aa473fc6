"""`progress.html`: how a training is doing, in a page that a browser loads again by itself."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt8

from pyratok_jax.io.remote import AnyPath
from pyratok_jax.reports.live import LiveTraining, write_live_page
from pyratok_jax.training.loop.contracts import Evaluation

PAGE = "progress.html"
_PERIOD = 30.0  # Seconds between two pages, which is also what a browser waits.
_KEPT = 2000  # Points of a curve; of more, every second one is dropped.

Curves = dict[str, list[tuple[int, float]]]


class ProgressPage:
    """Collects what a run logs and draws the page, in a thread, at most every half minute.

    Only process 0 writes; a run of less than half a minute leaves no page. The curves are those of
    this run: they begin where it was resumed. `report.html` shows the finished training.
    """

    def __init__(self, workdir: AnyPath, steps: int, *, primary: bool, period: float = _PERIOD):
        self._path, self._steps, self._period = workdir / PAGE, steps, period
        self._drawer = ThreadPoolExecutor(1, "progress-page") if primary else None
        self._drawing: Future[None] | None = None
        self._curves: Curves = {}
        self._measured: Curves = {}
        self._timing: dict[str, float] = {}
        self._pictures: dict[str, UInt8[np.ndarray, "h w 3"]] = {}
        self._step, self._written = 0, time.monotonic()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take note of logged means."""
        self._step = step
        _add(self._curves, step, values)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Take note of rates and times."""
        self._timing = dict(values)
        names = ("seconds_per_step", "clips_per_second", "mfu")
        self.metrics(step, {f"timing/{k}": values[k] for k in names if k in values})

    def evaluation(self, step: int, name: str, found: Evaluation) -> None:
        """Take note of what an evaluator has found."""
        values = {f"{name}/{key}": value for key, value in found.metrics.items()}
        _add(self._measured, step, values)
        self._pictures |= {f"{name}/{key}": picture for key, picture in found.pictures.items()}

    def write(self) -> None:
        """Begin to draw the page, unless one was drawn just now."""
        now = time.monotonic()
        if now - self._written >= self._period and (not self._drawing or self._drawing.done()):
            self._written = now
            self._draw(ended=False)

    def _draw(self, *, ended: bool) -> None:
        if self._drawer is None or not self._curves:
            return
        curves, measured = (
            {name: list(points) for name, points in found.items()}
            for found in (self._curves, self._measured)
        )
        training = LiveTraining(
            self._step, self._steps, curves, measured, dict(self._timing), dict(self._pictures),
            ended,
        )  # fmt: skip
        refresh = 0 if ended else int(_PERIOD)
        self._drawing = self._drawer.submit(write_live_page, self._path, training, refresh)

    def close(self, *, ended: bool) -> None:
        """Draw the last page, where there is one and the run ended as it should; end the thread.

        Raises:
            OSError: the last page cannot be written.
        """
        if self._drawer is not None:
            if ended and (self._drawing is not None or self._path.exists()):
                self._draw(ended=True)
            self._drawer.shutdown()
            if ended and self._drawing is not None:
                self._drawing.result()


def _add(curves: Curves, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        points = curves.setdefault(name, [])
        points.append((step, float(value)))
        if len(points) > _KEPT:
            del points[1::2]
