"""Rates of a training: clips and pixels per second, model FLOPs, MFU, estimated time left."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from pyratok_jax.nn.lowering import conv_lowering
from pyratok_jax.nn.trace import without_remat
from pyratok_jax.training.loop.flops import traced_flops
from pyratok_jax.training.step import Step

# Published dense bfloat16 FLOP/s of a device, by `jax.Device.device_kind`.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


class Throughput:
    """What the steps since the last logged one have processed.

    Model FLOPs are those of matrix products and convolutions in the traced step, two per
    multiply-add, without rematerialised activations and padded channels (`flops`). They are counted
    once for each shape of batch, in a thread, and only on devices whose peak is known.

    Attributes:
        peak: FLOP/s of all devices of the mesh; None: unknown.
        failure: why FLOPs could not be counted; "" where nothing failed.
    """

    def __init__(self, step: Step, mesh: Mesh, steps: int):
        """Begin to count.

        Args:
            step: the training step, not jitted.
            mesh: of the training.
            steps: number of the last step.
        """
        self._step, self._steps = step, steps
        peak = PEAKS.get(mesh.devices.flat[0].device_kind)
        self._devices = mesh.size
        self.peak = None if peak is None else peak * mesh.size
        self.failure = ""
        self._counter = ThreadPoolExecutor(1, "count-flops")
        self._flops: dict[Any, Future[float]] = {}
        self._window: list[Any] = []
        self._clips = self._pixels = self._noted = 0

    def add(self, rows: int, batch: Mapping[str, Array], inputs: tuple[PyTree, ...]) -> None:
        """Note a step.

        Args:
            rows: of its global batch.
            batch: its arrays; "video" gives the pixels.
            inputs: of the step.
        """
        self._clips, self._noted = self._clips + rows, self._noted + 1
        if "video" in batch:
            b, t, h, w = batch["video"].shape[:4]
            self._pixels += b * t * h * w
        if self.peak is not None:
            key = tuple((name, x.shape) for name, x in sorted(batch.items()))
            if key not in self._flops:
                shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
                self._flops[key] = self._counter.submit(self._count, shapes)
            self._window.append(key)

    def _count(self, shapes: tuple[PyTree, ...]) -> float:
        with without_remat(), conv_lowering("conv3d"):
            return traced_flops(self._step, *shapes)

    def rates(self, number: int, seconds_per_step: float) -> dict[str, float]:
        """Rates since the last call, and the time left; begins anew.

        Args:
            number: steps done.
            seconds_per_step: of the steps since the last call.

        Returns:
            `clips_per_second`; `megapixels_per_second` of videos; `teraflops_per_second` of one
            device and `mfu`, its share of the peak, once FLOPs are counted; `seconds_left`.
        """
        found = {"seconds_left": max(self._steps - number, 0) * seconds_per_step}
        seconds = seconds_per_step * self._noted
        if seconds > 0:
            found["clips_per_second"] = self._clips / seconds
            if self._pixels:
                found["megapixels_per_second"] = self._pixels / seconds / 1e6
            found |= self._utilisation(seconds)
        self._window, self._clips, self._pixels, self._noted = [], 0, 0, 0
        return found

    def _utilisation(self, seconds: float) -> dict[str, float]:
        counted = [self._flops[key] for key in self._window]
        if self.peak is None or not counted or not all(one.done() for one in counted):
            return {}
        error = next((one.exception() for one in counted if one.exception()), None)
        if error is not None:
            self.failure = f"{type(error).__name__}: {error}"
            return {}
        rate = sum(one.result() for one in counted) / seconds
        return {"teraflops_per_second": rate / self._devices / 1e12, "mfu": rate / self.peak}

    def close(self) -> None:
        """End the thread."""
        self._counter.shutdown(cancel_futures=True)
