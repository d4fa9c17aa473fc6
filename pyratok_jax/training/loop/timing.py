"""Where the time of a training goes: steps, waiting for data and for devices, by process."""

import time

import numpy as np
from jaxtyping import Float

# What a process measures of a step, in this order.
MEASURED = ("data_wait", "device_wait")


class Times:
    """Seconds of this process, in all and since the last logged step; the first step compiles.

    Attributes:
        total: of all steps after the first.
        waiting: of these, those in which the loop stood waiting for a batch.
    """

    def __init__(self) -> None:
        self.total = self.waiting = 0.0
        self._begin: float | None = None
        self._logged: float | None = None
        self._steps, self._waits = 0, np.zeros(len(MEASURED))

    def waited(self, data: float, device: float) -> None:
        """Of the step in progress: seconds spent waiting for its batch and for the devices."""
        if self._begin is not None:
            self.waiting += data
            self._waits += (data, device)
            self._steps += 1

    def step_done(self) -> None:
        """A step is over; counting starts after the first."""
        now = time.perf_counter()
        if self._begin is None:
            self._begin = self._logged = now
        self.total = now - self._begin

    def window(self) -> tuple[float, list[float]] | None:
        """Seconds per step and the waits per step since the last call; None after no steps."""
        if self._logged is None or not self._steps:
            return None
        now = time.perf_counter()
        seconds, waits = (now - self._logged) / self._steps, self._waits / self._steps
        self._logged, self._steps, self._waits = now, 0, np.zeros(len(MEASURED))
        return seconds, [float(x) for x in waits]


def over_processes(waits: Float[np.ndarray, "processes measured"]) -> dict[str, float]:
    """Least and most over the processes of each measured wait, in seconds per step.

    With several processes also `slowest_process`: the one that waits least for the devices, which
    is the one that the others wait for.
    """
    found = {}
    for number, name in enumerate(MEASURED):
        found[f"{name}_min"] = float(waits[:, number].min())
        found[f"{name}_max"] = float(waits[:, number].max())
    if len(waits) > 1:
        found["slowest_process"] = float(np.argmin(waits[:, MEASURED.index("device_wait")]))
    return found
